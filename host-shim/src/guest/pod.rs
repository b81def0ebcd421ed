//! What a pod of many containers asks of its agent.

use std::time::Duration;

use anyhow::Result;
use nacre_protocol::agent::{
    AddARPNeighborsRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    GetDiagnosticDataRequest, GetMetricsRequest, GetOOMEventRequest, PauseContainerRequest, RemoveContainerRequest,
    ResumeContainerRequest, Routes, StatsContainerRequest, StatsContainerResponse, UpdateContainerRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest,
};
use nacre_protocol::oci;
use nacre_protocol::types::Interface;
use ttrpc::Code;
use ttrpc::context::Context;

use super::{Guest, said, short, within};

/// What the agent calls a termination log.
const TERMINATION_LOG: &str = "termination_log";

impl Guest {
    /// Makes the sandbox.
    ///
    /// # Errors
    /// What the guest refuses.
    pub async fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<()> {
        said(self.agent.create_sandbox(short(), request).await, "make the sandbox").map(drop)
    }

    /// Ends the sandbox: the guest powers off.
    ///
    /// # Errors
    /// A guest that is gone.
    pub async fn destroy_sandbox(&self, limit: Duration) -> Result<()> {
        let request = DestroySandboxRequest::new();
        said(self.agent.destroy_sandbox(within(limit), &request).await, "end the sandbox").map(drop)
    }

    /// Sets up one interface.
    ///
    /// # Errors
    /// What the guest refuses.
    pub async fn set_interface(&self, interface: Interface) -> Result<()> {
        let request = UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
        said(self.agent.update_interface(short(), &request).await, "set up the guest's network").map(drop)
    }

    /// Sets all routes.
    ///
    /// # Errors
    /// What the guest refuses.
    pub async fn set_routes(&self, routes: Routes) -> Result<()> {
        let request = UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() };
        said(self.agent.update_routes(short(), &request).await, "set up the guest's routes").map(drop)
    }

    /// Adds neighbours that don't change.
    ///
    /// # Errors
    /// What the guest refuses.
    pub async fn add_neighbours(&self, request: &AddARPNeighborsRequest) -> Result<()> {
        said(self.agent.add_arp_neighbors(short(), request).await, "set up the guest's neighbours").map(drop)
    }

    /// Makes a container, up to its start gate.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn create_container(&self, request: &CreateContainerRequest, limit: Duration) -> Result<()> {
        said(self.agent.create_container(within(limit), request).await, "create the container").map(drop)
    }

    /// Removes a container. One that is not there is removed already.
    ///
    /// # Errors
    /// One that does not go.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into(), ..Default::default() };
        match self.agent.remove_container(short(), &request).await {
            // So Kata's agents say that they know no such container.
            Err(ttrpc::Error::RpcStatus(status))
                if [Code::INVALID_ARGUMENT, Code::NOT_FOUND].contains(&status.code()) =>
            {
                Ok(())
            }
            removed => said(removed, "remove the container").map(drop),
        }
    }

    /// Stops a container's processes where they are.
    ///
    /// # Errors
    /// One that is not there.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let request = PauseContainerRequest { container_id: id.into(), ..Default::default() };
        said(self.agent.pause_container(short(), &request).await, "pause the container").map(drop)
    }

    /// Lets a container's processes go on.
    ///
    /// # Errors
    /// One that is not there.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let request = ResumeContainerRequest { container_id: id.into(), ..Default::default() };
        said(self.agent.resume_container(short(), &request).await, "resume the container").map(drop)
    }

    /// Changes what a container may use.
    ///
    /// # Errors
    /// What the guest refuses.
    pub async fn update_container(&self, id: &str, resources: oci::LinuxResources) -> Result<()> {
        let request =
            UpdateContainerRequest { container_id: id.into(), resources: Some(resources).into(), ..Default::default() };
        said(self.agent.update_container(short(), &request).await, "update the container").map(drop)
    }

    /// What a container has used.
    ///
    /// # Errors
    /// One that is not there.
    pub async fn stats(&self, id: &str) -> Result<StatsContainerResponse> {
        let request = StatsContainerRequest { container_id: id.into(), ..Default::default() };
        said(self.agent.stats_container(short(), &request).await, "measure the container")
    }

    /// The container of the next process that is killed for want of memory, however long that takes.
    ///
    /// # Errors
    /// A guest that is gone.
    pub async fn oom_event(&self) -> Result<String> {
        let request = GetOOMEventRequest::new();
        Ok(said(self.agent.get_oom_event(Context::default(), &request).await, "hear of memory")?.container_id)
    }

    /// The metrics of agent and guest, as Prometheus has them.
    ///
    /// # Errors
    /// A guest that does not tell.
    pub async fn metrics(&self) -> Result<String> {
        Ok(said(self.agent.get_metrics(short(), &GetMetricsRequest::new()).await, "measure the guest")?.metrics)
    }

    /// What a container has written to its termination log.
    ///
    /// # Errors
    /// One that has none.
    pub async fn termination_log(&self, id: &str) -> Result<String> {
        let request = GetDiagnosticDataRequest {
            log_type: TERMINATION_LOG.into(),
            container_id: id.into(),
            ..Default::default()
        };
        Ok(said(self.agent.get_diagnostic_data(short(), &request).await, "read the termination log")?.data)
    }
}
