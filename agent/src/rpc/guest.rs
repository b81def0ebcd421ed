//! `nacre.v1.Guest`: what Nacre's own host asks beyond Kata's API.

use async_trait::async_trait;
use nacre_protocol::nacre::{
    BootTimes, GetBootTimesRequest, PullStatus, ResizeConsoleRequest, ResizeConsoleResponse, SetLogLevelRequest,
    SetLogLevelResponse, SetRegistryAccessRequest, SetRegistryAccessResponse, WatchPullRequest,
};
use nacre_protocol::nacre_ttrpc::Guest;
use ttrpc::r#async::TtrpcContext;

use super::{Error, Services};
use crate::log;

#[async_trait]
impl Guest for Services {
    async fn get_boot_times(&self, _: &TtrpcContext, request: GetBootTimesRequest) -> ttrpc::Result<BootTimes> {
        self.pass("GetBootTimes", request, |_| async { Ok(self.boot.times()) }).await
    }

    async fn set_registry_access(
        &self,
        _: &TtrpcContext,
        request: SetRegistryAccessRequest,
    ) -> ttrpc::Result<SetRegistryAccessResponse> {
        self.pass("SetRegistryAccess", request, |request| async move {
            self.sandbox.pulls().set_registry_access(&request.into_inner())?;
            Ok(SetRegistryAccessResponse::new())
        })
        .await
    }

    async fn watch_pull(&self, _: &TtrpcContext, request: WatchPullRequest) -> ttrpc::Result<PullStatus> {
        self.pass("WatchPull", request, |request| async move {
            let request = request.into_inner();
            Ok(self.sandbox.pulls().watch(&request.container_id, request.seen_revision).await)
        })
        .await
    }

    async fn set_log_level(&self, _: &TtrpcContext, request: SetLogLevelRequest) -> ttrpc::Result<SetLogLevelResponse> {
        self.pass("SetLogLevel", request, |request| async move {
            let word = request.into_inner().level;
            let level = log::level(&word).ok_or(Error::LogLevel)?;
            let previous = log::set_level(level);
            tracing::error!(%previous, %level, "the host has changed the log's level");
            Ok(SetLogLevelResponse { previous: previous.as_str().to_ascii_lowercase(), ..SetLogLevelResponse::new() })
        })
        .await
    }

    async fn resize_console(
        &self,
        _: &TtrpcContext,
        request: ResizeConsoleRequest,
    ) -> ttrpc::Result<ResizeConsoleResponse> {
        self.pass("ResizeConsole", request, |request| async move {
            let request = request.into_inner();
            self.consoles.resize(request.port, request.column, request.row)?;
            Ok(ResizeConsoleResponse::new())
        })
        .await
    }
}
