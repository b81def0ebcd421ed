//! A kubelet, as far as containerd's CRI sees one.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AttachRequest, ContainerConfig, ContainerMetadata, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ExecRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest, VersionRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

/// The runtime handler that containerd has for our shim.
pub const HANDLER: &str = "nacre";

/// How long a call may take: emulated guests boot and pull within it, beside other tests.
const WITHIN: Duration = Duration::from_secs(120);

/// A client of containerd's CRI.
#[derive(Debug, Clone)]
pub struct Cri {
    /// Pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
}

/// A program's streams over containerd's streaming server (Kubernetes' `v4.channel.k8s.io`: the first byte of a message is its stream).
#[derive(Debug)]
pub struct Streams(WebSocket<TcpStream>);

const STDIN: u8 = 0;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

impl Streams {
    fn open(url: &str) -> Result<Streams> {
        let url = url.replacen("http://", "ws://", 1);
        let mut request = url.as_str().into_client_request().context("make the request")?;
        let protocol = HeaderValue::from_static("v4.channel.k8s.io");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let host = request.uri().authority().context("the address has no host")?.to_string();
        let stream = TcpStream::connect(&host).with_context(|| format!("connect to {host}"))?;
        stream.set_read_timeout(Some(WITHIN)).context("bound the wait")?;
        let (socket, _) =
            tungstenite::client(request, stream).map_err(|error| anyhow::anyhow!("open the streams: {error}"))?;
        Ok(Streams(socket))
    }

    fn send(&mut self, stream: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[stream], bytes].concat();
        self.0.send(Message::binary(message)).context("send to the program")
    }

    /// Writes to its input.
    ///
    /// # Errors
    /// Streams that have ended.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(STDIN, bytes)
    }

    /// Says the size of its terminal.
    ///
    /// # Errors
    /// Streams that have ended.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        self.send(RESIZE, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes())
    }

    /// What it writes, until `enough` of it was seen. With what is said of its end, once it has come.
    ///
    /// # Errors
    /// Streams that have ended before.
    pub fn read_until(&mut self, enough: &str) -> Result<String> {
        let mut seen = String::new();
        while !seen.contains(enough) {
            let message = self.0.read().with_context(|| format!("read what the program writes, after {seen:?}"))?;
            if let Message::Binary(bytes) = message
                && let Some((stream, text)) = bytes.split_first()
            {
                let end = if *stream == ERROR { "\nended: " } else { "" };
                seen.push_str(end);
                seen.push_str(&String::from_utf8_lossy(text));
            }
        }
        Ok(seen)
    }
}

/// What a kubelet asks for where a pod says nothing: network and IPC are the pod's, and processes each container's own.
fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    /// containerd's name for it.
    pub id: String,
    /// What it was made of.
    pub config: PodSandboxConfig,
}

impl Cri {
    /// Connects to containerd's socket.
    ///
    /// # Errors
    /// Nobody there.
    pub async fn connect(socket: PathBuf) -> Result<Cri> {
        let endpoint = Endpoint::from_static("http://containerd").timeout(WITHIN);
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector(connector).await.context("connect to containerd's CRI")?;
        let mut cri =
            Cri { runtime: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) };
        cri.until_ready().await?;
        Ok(cri)
    }

    /// containerd answers before its CRI has recovered what was there.
    async fn until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        loop {
            match self.runtime.version(VersionRequest::default()).await {
                Ok(_) => return Ok(()),
                Err(status) if Instant::now() < deadline && status.message().contains("not initialized") => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => return Err(status).context("reach containerd's CRI"),
            }
        }
    }

    /// Runs a pod that keeps its containers' logs in `logs`, changed by `change`.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn run_pod(
        &mut self,
        name: &str,
        logs: &Path,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod> {
        let metadata = PodSandboxMetadata {
            name: name.into(),
            uid: format!("{name}-uid"),
            namespace: "default".into(),
            attempt: 0,
        };
        let mut config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        change(&mut config);
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: HANDLER.into() };
        let id = self.runtime.run_pod_sandbox(request).await.context("run the pod")?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Makes a container in a pod: the shell `script` in `image`, changed by `change`.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn create(
        &mut self,
        pod: &Pod,
        name: &str,
        image: &str,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String> {
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
            command: ["sh", "-c", script].map(String::from).into(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.runtime.create_container(request).await.context("create the container")?.into_inner().container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn start(&mut self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into() };
        self.runtime.start_container(request).await.context("start the container").map(drop)
    }

    /// Runs a shell script in a container.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn exec(&mut self, id: &str, script: &str) -> Result<ExecSyncResponse> {
        let cmd = ["sh", "-c", script].map(String::from).into();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 60 };
        Ok(self.runtime.exec_sync(request).await.context("run a program in the container")?.into_inner())
    }

    /// What a shell script in a container writes.
    ///
    /// # Errors
    /// As [`Cri::exec`].
    pub async fn says(&mut self, id: &str, script: &str) -> Result<String> {
        let response = self.exec(id, script).await?;
        Ok(String::from_utf8_lossy(&response.stdout).into_owned() + &String::from_utf8_lossy(&response.stderr))
    }

    /// Streams of a program in a container, as `kubectl exec -it` has them.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn exec_stream(&mut self, id: &str, cmd: &[&str], tty: bool) -> Result<Streams> {
        let cmd = cmd.iter().map(ToString::to_string).collect();
        let request = ExecRequest { container_id: id.into(), cmd, tty, stdin: true, stdout: true, stderr: !tty };
        Streams::open(&self.runtime.exec(request).await.context("ask for streams")?.into_inner().url)
    }

    /// Streams of a container's first process, as `kubectl attach` has them.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn attach(&mut self, id: &str) -> Result<Streams> {
        let request = AttachRequest { container_id: id.into(), stdin: false, tty: false, stdout: true, stderr: true };
        Streams::open(&self.runtime.attach(request).await.context("ask for streams")?.into_inner().url)
    }

    /// Where a container is in its life.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn status(&mut self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let response = self.runtime.container_status(request).await.context("look at the container")?;
        response.into_inner().status.context("the container has no status")
    }

    /// Stops a container: by a signal, and by force after `timeout` seconds.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn stop(&mut self, id: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout };
        self.runtime.stop_container(request).await.context("stop the container").map(drop)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn remove(&mut self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into() };
        self.runtime.remove_container(request).await.context("remove the container").map(drop)
    }

    /// Stops a pod and removes it.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.stop_pod_sandbox(request).await.context("stop the pod")?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.remove_pod_sandbox(request).await.context("remove the pod").map(drop)
    }
}
