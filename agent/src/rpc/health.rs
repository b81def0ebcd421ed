//! `grpc.Health`: whether the agent is there. No policy is asked and nothing is waited for.

use async_trait::async_trait;
use nacre_protocol::health::health_check_response::ServingStatus;
use nacre_protocol::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use nacre_protocol::health_ttrpc::Health;
use ttrpc::r#async::TtrpcContext;

use super::Services;

/// The version of the wire contract, as Kata's hosts know it.
const API_VERSION: &str = "0.0.1";

#[async_trait]
impl Health for Services {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..HealthCheckResponse::new() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            grpc_version: API_VERSION.into(),
            ..VersionCheckResponse::new()
        })
    }
}
