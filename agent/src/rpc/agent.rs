//! `grpc.AgentService`: Kata's agent API. Every method is named here, also those that are not offered.

use std::path::Path;

use async_trait::async_trait;
use nacre_protocol::agent::*;
use nacre_protocol::agent_ttrpc::AgentService;
use nacre_protocol::empty::Empty;
use nacre_protocol::{csi, types};
use ttrpc::r#async::TtrpcContext;

use super::{Services, blocking};
use crate::copy_file::{self, CopyFile};
use crate::device::{Locator, PciPath};
use crate::metrics::Facts;
use crate::{guest, network, sandbox, stats};

#[async_trait]
impl AgentService for Services {
    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> ttrpc::Result<Empty> {
        self.pass("CreateContainer", request, |request| async move {
            self.sandbox.create_container(request.into_inner()).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> ttrpc::Result<Empty> {
        self.pass("StartContainer", request, |request| async move {
            let request = request.into_inner();
            self.sandbox.start_container(&request.container_id).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> ttrpc::Result<Empty> {
        self.pass("RemoveContainer", request, |request| async move {
            let request = request.into_inner();
            self.sandbox.remove_container(&request.container_id, request.timeout).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.pass("ExecProcess", request, |request| async move {
            self.sandbox.exec(request.into_inner()).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.pass("SignalProcess", request, |request| async move {
            let request = request.into_inner();
            let signal = i32::try_from(request.signal).unwrap_or(i32::MAX);
            let container = self.sandbox.container(&request.container_id)?;
            container.signal(&request.exec_id, signal).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        self.pass("WaitProcess", request, |request| async move {
            let request = request.into_inner();
            let process = self.sandbox.process(&request.container_id, &request.exec_id)?;
            Ok(WaitProcessResponse { status: process.wait().await, ..WaitProcessResponse::new() })
        })
        .await
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> ttrpc::Result<Empty> {
        self.pass("UpdateContainer", request, |request| async move {
            self.sandbox.update_container(&request.into_inner()).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.pass("UpdateEphemeralMounts", request, |request| async move {
            self.sandbox.update_ephemeral_mounts(request.into_inner()).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        self.pass("StatsContainer", request, |request| async move {
            let request = request.into_inner();
            let stats = self.sandbox.container(&request.container_id)?.stats().await?;
            Ok(stats::response(&stats))
        })
        .await
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.pass("PauseContainer", request, |request| async move {
            let request = request.into_inner();
            self.sandbox.container(&request.container_id)?.pause().await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> ttrpc::Result<Empty> {
        self.pass("ResumeContainer", request, |request| async move {
            let request = request.into_inner();
            self.sandbox.container(&request.container_id)?.resume().await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        request: RemoveStaleVirtiofsShareMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.pass("RemoveStaleVirtiofsShareMounts", request, |_| async move {
            self.sandbox.remove_stale_mounts(Path::new(copy_file::ROOT)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        request: GetDiagnosticDataRequest,
    ) -> ttrpc::Result<GetDiagnosticDataResponse> {
        self.pass("GetDiagnosticData", request, |request| async move {
            let request = request.into_inner();
            guest::check_kind(&request.log_type)?;
            let log = self.sandbox.container(&request.container_id)?.termination_log()?.to_string_lossy().into_owned();
            let data = blocking(move || guest::termination_log(Path::new(copy_file::ROOT), &log)).await?;
            Ok(GetDiagnosticDataResponse { data, ..GetDiagnosticDataResponse::new() })
        })
        .await
    }

    async fn write_stdin(&self, _: &TtrpcContext, request: WriteStreamRequest) -> ttrpc::Result<WriteStreamResponse> {
        self.pass("WriteStdin", request, |request| async move {
            let request = request.into_inner();
            let process = self.sandbox.process(&request.container_id, &request.exec_id)?;
            if request.data.is_empty() {
                process.close_input().await; // hosts that know no CloseStdin say it so
            } else {
                process.write(&request.data).await?;
            }
            let len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
            Ok(WriteStreamResponse { len, ..WriteStreamResponse::new() })
        })
        .await
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.pass("ReadStdout", request, |request| async move {
            let request = request.into_inner();
            let process = self.sandbox.process(&request.container_id, &request.exec_id)?;
            let data = process.read_output(request.len as usize).await?;
            Ok(ReadStreamResponse { data, ..ReadStreamResponse::new() })
        })
        .await
    }

    async fn read_stderr(&self, _: &TtrpcContext, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.pass("ReadStderr", request, |request| async move {
            let request = request.into_inner();
            let process = self.sandbox.process(&request.container_id, &request.exec_id)?;
            let data = process.read_errors(request.len as usize).await?;
            Ok(ReadStreamResponse { data, ..ReadStreamResponse::new() })
        })
        .await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.pass("CloseStdin", request, |request| async move {
            let request = request.into_inner();
            self.sandbox.process(&request.container_id, &request.exec_id)?.close_input().await;
            Ok(Empty::new())
        })
        .await
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> ttrpc::Result<Empty> {
        self.pass("TtyWinResize", request, |request| async move {
            let request = request.into_inner();
            let process = self.sandbox.process(&request.container_id, &request.exec_id)?;
            process.resize(request.column, request.row)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: UpdateInterfaceRequest,
    ) -> ttrpc::Result<types::Interface> {
        self.pass("UpdateInterface", request, |request| async move {
            let request = request.into_inner();
            let plugged = network::plugged(request.interface.as_ref(), &self.devices).await?;
            blocking(move || network::update_interface(request.interface.as_ref(), plugged.as_deref())).await
        })
        .await
    }

    async fn update_routes(&self, _: &TtrpcContext, request: UpdateRoutesRequest) -> ttrpc::Result<Routes> {
        self.pass("UpdateRoutes", request, |request| async move {
            let request = request.into_inner();
            blocking(move || network::update_routes(request.routes.as_ref())).await
        })
        .await
    }

    async fn list_interfaces(&self, _: &TtrpcContext, request: ListInterfacesRequest) -> ttrpc::Result<Interfaces> {
        self.pass("ListInterfaces", request, |_| async move { blocking(network::list_interfaces).await }).await
    }

    async fn list_routes(&self, _: &TtrpcContext, request: ListRoutesRequest) -> ttrpc::Result<Routes> {
        self.pass("ListRoutes", request, |_| async move { blocking(network::list_routes).await }).await
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, request: AddARPNeighborsRequest) -> ttrpc::Result<Empty> {
        self.pass("AddARPNeighbors", request, |request| async move {
            let request = request.into_inner();
            blocking(move || network::add_neighbours(request.neighbors.as_ref())).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn get_ip_tables(&self, _: &TtrpcContext, request: GetIPTablesRequest) -> ttrpc::Result<GetIPTablesResponse> {
        self.pass("GetIPTables", request, |request| async move {
            let data = network::iptables::save(Path::new("/"), request.into_inner().is_ipv6).await?;
            Ok(GetIPTablesResponse { data, ..GetIPTablesResponse::new() })
        })
        .await
    }

    async fn set_ip_tables(&self, _: &TtrpcContext, request: SetIPTablesRequest) -> ttrpc::Result<SetIPTablesResponse> {
        self.pass("SetIPTables", request, |request| async move {
            let request = request.into_inner();
            let data = network::iptables::restore(Path::new("/"), request.is_ipv6, &request.data).await?;
            Ok(SetIPTablesResponse { data, ..SetIPTablesResponse::new() })
        })
        .await
    }

    async fn get_metrics(&self, _: &TtrpcContext, request: GetMetricsRequest) -> ttrpc::Result<Metrics> {
        self.pass("GetMetrics", request, |_| async move {
            let facts = Facts {
                boot: self.boot.times(),
                pull_bytes: self.sandbox.pulls().bytes_total(),
                containers: self.sandbox.count(),
                helpers: self.helpers.starts(),
            };
            Ok(Metrics { metrics: self.metrics.render(&facts)?, ..Metrics::new() })
        })
        .await
    }

    async fn mem_agent_memcg_set(&self, _: &TtrpcContext, request: MemAgentMemcgConfig) -> ttrpc::Result<Empty> {
        self.refuse("MemAgentMemcgSet", request).await
    }

    async fn mem_agent_compact_set(&self, _: &TtrpcContext, request: MemAgentCompactConfig) -> ttrpc::Result<Empty> {
        self.refuse("MemAgentCompactSet", request).await
    }

    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        self.pass("CreateSandbox", request, |request| async move {
            self.sandbox.create(request.into_inner()).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, request: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        self.pass("DestroySandbox", request, |_| async move {
            self.sandbox.destroy().await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, request: OnlineCPUMemRequest) -> ttrpc::Result<Empty> {
        self.pass("OnlineCPUMem", request, |request| async move {
            guest::online(guest::DEVICES.into(), &request.into_inner(), self.devices.patience()).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, request: ReseedRandomDevRequest) -> ttrpc::Result<Empty> {
        self.pass("ReseedRandomDev", request, |request| async move {
            let request = request.into_inner();
            blocking(move || guest::reseed(&request.data)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        self.pass("GetGuestDetails", request, |request| async move {
            let request = request.into_inner();
            Ok(guest::details(&request, self.init_daemon)?)
        })
        .await
    }

    async fn mem_hotplug_by_probe(&self, _: &TtrpcContext, request: MemHotplugByProbeRequest) -> ttrpc::Result<Empty> {
        self.pass("MemHotplugByProbe", request, |request| async move {
            let addresses = request.into_inner().memHotplugProbeAddr;
            blocking(move || guest::probe_memory(Path::new(guest::DEVICES), &addresses)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, request: SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
        self.pass("SetGuestDateTime", request, |request| async move {
            let request = request.into_inner();
            guest::set_clock(request.Sec, request.Usec)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> ttrpc::Result<Empty> {
        self.pass("CopyFile", request, |request| async move {
            let request = request.into_inner();
            blocking(move || CopyFile::open(Path::new(copy_file::ROOT))?.copy(&request)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn get_oom_event(&self, _: &TtrpcContext, request: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        self.pass("GetOOMEvent", request, |_| async move {
            let container_id = self.sandbox.oom_event().await?;
            Ok(OOMEvent { container_id, ..OOMEvent::new() })
        })
        .await
    }

    async fn add_swap(&self, _: &TtrpcContext, request: AddSwapRequest) -> ttrpc::Result<Empty> {
        self.pass("AddSwap", request, |request| async move {
            let disk = Locator::Pci(PciPath::of_slots(&request.into_inner().PCIPath)?);
            let node = self.devices.block(&disk).await?.node;
            blocking(move || guest::add_swap(&node.to_string_lossy())).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn add_swap_path(&self, _: &TtrpcContext, request: AddSwapPathRequest) -> ttrpc::Result<Empty> {
        self.pass("AddSwapPath", request, |request| async move {
            let request = request.into_inner();
            blocking(move || guest::add_swap(&request.path)).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        request: VolumeStatsRequest,
    ) -> ttrpc::Result<csi::VolumeStatsResponse> {
        self.pass("GetVolumeStats", request, |request| async move {
            let path = request.into_inner().volume_guest_path;
            blocking(move || guest::volume_stats(Path::new(sandbox::RUN), &path)).await
        })
        .await
    }

    async fn resize_volume(&self, _: &TtrpcContext, request: ResizeVolumeRequest) -> ttrpc::Result<Empty> {
        self.pass("ResizeVolume", request, |request| async move {
            let request = request.into_inner();
            let resize =
                move || guest::resize_volume(Path::new(sandbox::RUN), &request.volume_guest_path, request.size);
            blocking(resize).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn set_policy(&self, _: &TtrpcContext, request: SetPolicyRequest) -> ttrpc::Result<Empty> {
        self.pass("SetPolicy", request, |request| async move {
            self.policy.set(request.into_inner().policy).await?;
            tracing::warn!("POLICY: the host has set another one");
            Ok(Empty::new())
        })
        .await
    }
}
