//! The Task service: requests are read here, [`Pod`] does what they ask, and its errors get the codes that containerd acts on.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::types::task::{ProcessInfo, Status as TaskStatus};
use nacre_protocol::convert;
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use ttrpc::r#async::TtrpcContext;

use super::bundle::Bundle;
use super::error::{Error, Result, invalid};
use super::events::timestamp;
use super::life::Life;
use super::pod::Create;
use super::process::{Process, Status};
use super::stats;
use super::stdio::Stdio;

/// The largest specification of a process, or resources, that is read.
const MAX_JSON: usize = 2 << 20;

/// The Task API's version that this is.
const VERSION: &str = "v2";

/// The service of a pod.
#[derive(Debug)]
pub struct Service(Arc<Life>);

impl Service {
    /// Serves `life`.
    pub fn new(life: Arc<Life>) -> Service {
        Service(life)
    }

    async fn do_create(&self, request: CreateTaskRequest) -> Result<()> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unimplemented("checkpoints: a guest's memory is not given away".into()));
        }
        let bundle = Bundle::read(Path::new(&request.bundle))?;
        let stdio =
            Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let options = request.options.into_option().unwrap_or_default();
        self.0.create(Create { id: request.id, bundle, stdio }, &options).await
    }

    fn do_exec(&self, request: ExecProcessRequest) -> Result<()> {
        let spec: ProcessSpec = json("process", &request.spec.unwrap_or_default())?;
        let mut spec = spec;
        spec.set_terminal(Some(request.terminal)).set_apparmor_profile(None).set_selinux_label(None);
        let spec = convert::process_from_oci(&spec).map_err(|error| invalid("process", error))?;
        if request.exec_id.is_empty() || request.exec_id == request.id {
            return Err(Error::Invalid("exec_id: it must be another than the container's".into()));
        }
        let stdio =
            Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        self.0.pod()?.exec(&request.id, &request.exec_id, stdio, spec)
    }

    async fn do_stats(&self, id: &str) -> Result<Any> {
        let pod = self.0.pod()?;
        if pod.task(id)?.in_guest {
            return Ok(stats::metrics(&pod.guest(id)?.stats(id).await?));
        }
        let (cpu, memory) = self.0.used();
        Ok(stats::of_host(cpu, memory))
    }

    fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        self.0.pod()?.task(id)?.process(exec)
    }

    fn do_state(&self, request: &StateRequest) -> Result<StateResponse> {
        let task = self.0.pod()?.task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        let paused = task.paused.load(std::sync::atomic::Ordering::Relaxed);
        let status = match process.status() {
            Status::Created | Status::Starting => TaskStatus::CREATED,
            Status::Running if paused => TaskStatus::PAUSED,
            Status::Running => TaskStatus::RUNNING,
            Status::Stopped { .. } => TaskStatus::STOPPED,
        };
        let mut response = StateResponse {
            id: request.id.clone(),
            bundle: task.bundle.display().to_string(),
            pid: std::process::id(),
            status: EnumOrUnknown::new(status),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exec_id: request.exec_id.clone(),
            ..StateResponse::default()
        };
        if let Status::Stopped { code, at } = process.status() {
            response.exit_status = code;
            response.exited_at = MessageField::some(timestamp(at));
        }
        Ok(response)
    }
}

/// Reads JSON that came in a message.
fn json<T: for<'de> serde::Deserialize<'de>>(what: &str, any: &Any) -> Result<T> {
    if any.value.len() > MAX_JSON {
        return Err(Error::Invalid(format!("{what}: it is longer than {} MiB", MAX_JSON >> 20)));
    }
    serde_json::from_slice(&any.value).map_err(|error| invalid(what, error))
}

#[async_trait]
impl Task for Service {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        self.do_create(request).await?;
        Ok(CreateTaskResponse { pid: std::process::id(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        self.0.pod()?.start(&request.id, &request.exec_id).await?;
        Ok(StartResponse { pid: std::process::id(), ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(self.do_state(&request)?)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (code, at) = self.process(&request.id, &request.exec_id)?.ended().await;
        Ok(WaitResponse { exit_status: code, exited_at: MessageField::some(timestamp(at)), ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let (code, at) = self.0.delete(&request.id, &request.exec_id).await?;
        Ok(DeleteResponse {
            pid: std::process::id(),
            exit_status: code,
            exited_at: MessageField::some(timestamp(at)),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        self.0.pod()?.kill(&request.id, &request.exec_id, request.signal, request.all).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.do_exec(request)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let process = self.process(&request.id, &request.exec_id)?;
        let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = (size(request.width), size(request.height));
        process.set_size(size);
        if process.status() == Status::Running {
            self.0.pod()?.guest(&request.id)?.resize(&process.id, size).await.map_err(Error::from)?;
        }
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        if request.stdin {
            self.process(&request.id, &request.exec_id)?.relays.close_input();
        }
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let task = self.0.pod()?.task(&request.id)?;
        // Those of the guest mean nothing here; their number does.
        let info = ProcessInfo { pid: std::process::id(), ..ProcessInfo::default() };
        Ok(PidsResponse { processes: vec![info; task.processes()], ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.0.pod()?.pause(&request.id).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.0.pod()?.resume(&request.id).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(Error::Unimplemented("checkpoints: a guest's memory is not given away".into()).into())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let resources: LinuxResources = json("resources", &request.resources.unwrap_or_default())?;
        self.0.pod()?.update(&request.id, resources).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let stats = self.do_stats(&request.id).await?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        self.0.pod()?.task(&request.id)?;
        let pid = std::process::id();
        Ok(ConnectResponse { shim_pid: pid, task_pid: pid, version: VERSION.into(), ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.0.shut_down();
        Ok(Empty::new())
    }
}
