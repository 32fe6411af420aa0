//! The handlers.

use std::convert::Infallible;

use axum::Json;
use axum::Router;
use axum::extract::State as Extract;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot};
use utoipa::openapi::OpenApi;
use utoipa::openapi::info::InfoBuilder;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Api, ErrorReply, StateReply, StopRequest};
use crate::inbox::{Refusal, Verb};
use crate::keeping::KeepError;
use crate::lifecycle::StateEvent;
use crate::{
    CheckpointRequest, CheckpointStatus, DebugReply, DebugRequest, Metrics, RecordRequest,
    RecordStatus, SaveRecordingRequest, State, VmInfo,
};

/// Everything that answers.
pub(super) fn router(api: Api) -> Router {
    let (router, description) = parts();
    let describe = move || async move { Json(description) };
    router
        .route("/openapi.json", axum::routing::get(describe))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "no such path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "wrong method; see /openapi.json")
        })
        .with_state(api)
}

/// What `/openapi.json` says.
pub(super) fn description() -> OpenApi {
    parts().1
}

fn parts() -> (Router<Api>, OpenApi) {
    let (router, mut description) = OpenApiRouter::new()
        .routes(routes!(inspect))
        .routes(routes!(metrics))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(stop))
        .routes(routes!(power_button))
        .routes(routes!(events))
        .routes(routes!(start_checkpoint, checkpoint, cancel_checkpoint))
        .routes(routes!(start_record, record, end_record))
        .routes(routes!(save_recording))
        .routes(routes!(debug))
        .split_for_parts();
    description.info = InfoBuilder::new()
        .title("Doppel VM")
        .version("1")
        .description(Some("One running virtual machine, on its unix socket."))
        .build();
    (router, description)
}

/// What the VM is and where it stands.
#[utoipa::path(get, path = "/vm", responses((status = OK, body = VmInfo)))]
async fn inspect(Extract(api): Extract<Api>) -> Json<VmInfo> {
    let metrics = api.metrics.get();
    let mut disks = api.info.disks.clone();
    for (disk, live) in disks.iter_mut().zip(api.keeper.disks()) {
        // Where a checkpoint has put an overlay on top, that is the disk now.
        if std::path::absolute(&disk.path).is_ok_and(|path| path != live.path) {
            (disk.path, disk.format) = (live.path, live.format.name().into());
        }
    }
    Json(VmInfo {
        disks,
        state: api.lifecycle.state(),
        branches: metrics.branches,
        virtual_time_ns: metrics.virtual_time_ns,
        engine_counters: api.counters.get(),
        ..api.info
    })
}

/// Counters.
#[utoipa::path(get, path = "/vm/metrics", responses((status = OK, body = Metrics)))]
async fn metrics(Extract(api): Extract<Api>) -> Json<Metrics> {
    Json(api.metrics.get())
}

/// Makes the guest stand still; answers when it does.
#[utoipa::path(put, path = "/vm/pause", responses(
    (status = OK, body = StateReply),
    (status = CONFLICT, body = ErrorReply, description = "The VM is stopping or has stopped")
))]
async fn pause(Extract(api): Extract<Api>) -> Response {
    answer(api.control.request(Verb::Pause)).await
}

/// Lets the guest go on.
#[utoipa::path(put, path = "/vm/resume", responses(
    (status = OK, body = StateReply),
    (status = CONFLICT, body = ErrorReply, description = "The VM is stopping or has stopped")
))]
async fn resume(Extract(api): Extract<Api>) -> Response {
    answer(api.control.request(Verb::Resume)).await
}

/// Asks the guest to power off and ends the VM if it does not in time, or ends it at once.
#[utoipa::path(put, path = "/vm/stop", request_body = Option<StopRequest>, responses(
    (status = OK, body = StateReply, description = "On its way; /events tells the end"),
    (status = BAD_REQUEST, body = ErrorReply),
    (status = CONFLICT, body = ErrorReply, description = "The VM has stopped")
))]
async fn stop(
    Extract(api): Extract<Api>,
    request: Result<Option<Json<StopRequest>>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(request) => request.map(|Json(request)| request).unwrap_or_default(),
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    if request.force {
        api.control.kill();
        return Json(StateReply { state: State::Stopping }).into_response();
    }
    answer(api.control.stop()).await
}

/// Presses the power button, and leaves it to the guest.
#[utoipa::path(put, path = "/vm/power-button", responses(
    (status = OK, body = StateReply),
    (status = CONFLICT, body = ErrorReply, description = "The VM has stopped")
))]
async fn power_button(Extract(api): Extract<Api>) -> Response {
    answer(api.control.request(Verb::PowerButton)).await
}

/// Starts a checkpoint; answers at once. `GET` tells how far it is.
#[utoipa::path(put, path = "/vm/checkpoint", request_body = CheckpointRequest, responses(
    (status = ACCEPTED, body = CheckpointStatus),
    (status = BAD_REQUEST, body = ErrorReply),
    (status = CONFLICT, body = ErrorReply, description = "One is being taken")
))]
async fn start_checkpoint(
    Extract(api): Extract<Api>,
    request: Result<Json<CheckpointRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    started(&api, api.keeper.start(request))
}

fn started(api: &Api, started: Result<(), KeepError>) -> Response {
    match started {
        Ok(()) => (StatusCode::ACCEPTED, Json(api.keeper.status())).into_response(),
        Err(error @ (KeepError::Busy | KeepError::Ended | KeepError::Recorded(_))) => {
            refuse(StatusCode::CONFLICT, &error.to_string())
        }
        Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// How far the last checkpoint is.
#[utoipa::path(get, path = "/vm/checkpoint", responses(
    (status = OK, body = CheckpointStatus),
    (status = NOT_FOUND, body = ErrorReply, description = "None was taken")
))]
async fn checkpoint(Extract(api): Extract<Api>) -> Response {
    match api.keeper.status() {
        Some(status) => Json(status).into_response(),
        None => refuse(StatusCode::NOT_FOUND, "no checkpoint was taken of this VM"),
    }
}

/// Gives up the checkpoint that is being taken.
#[utoipa::path(delete, path = "/vm/checkpoint", responses(
    (status = OK, body = CheckpointStatus),
    (status = CONFLICT, body = ErrorReply, description = "None is being taken")
))]
async fn cancel_checkpoint(Extract(api): Extract<Api>) -> Response {
    if api.keeper.cancel() {
        return Json(api.keeper.status()).into_response();
    }
    refuse(StatusCode::CONFLICT, "no checkpoint of this VM is being taken")
}

/// Starts a recording, which begins with a checkpoint; answers at once with that. `GET
/// /vm/checkpoint` tells how far it is.
#[utoipa::path(put, path = "/vm/record", request_body = RecordRequest, responses(
    (status = ACCEPTED, body = CheckpointStatus),
    (status = BAD_REQUEST, body = ErrorReply),
    (status = CONFLICT, body = ErrorReply,
        description = "The VM is recorded already, or a checkpoint is being taken")
))]
async fn start_record(
    Extract(api): Extract<Api>,
    request: Result<Json<RecordRequest>, JsonRejection>,
) -> Response {
    match request {
        Ok(Json(request)) => started(&api, api.keeper.record(&request)),
        Err(rejection) => refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

/// Makes a recording of what the flight recorder has; answers at once. `GET /vm/checkpoint` tells
/// how far it is.
#[utoipa::path(put, path = "/vm/save-recording", request_body = SaveRecordingRequest, responses(
    (status = ACCEPTED, body = CheckpointStatus),
    (status = BAD_REQUEST, body = ErrorReply),
    (status = CONFLICT, body = ErrorReply, description = "A checkpoint is being taken")
))]
async fn save_recording(
    Extract(api): Extract<Api>,
    request: Result<Json<SaveRecordingRequest>, JsonRejection>,
) -> Response {
    match request {
        Ok(Json(request)) => started(&api, api.keeper.save_recording(&request.folder)),
        Err(rejection) => refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

/// The recording that is being made.
#[utoipa::path(get, path = "/vm/record", responses(
    (status = OK, body = RecordStatus),
    (status = NOT_FOUND, body = ErrorReply, description = "None is being made")
))]
async fn record(Extract(api): Extract<Api>) -> Response {
    match api.keeper.record_status() {
        Some(status) => Json(status).into_response(),
        None => refuse(StatusCode::NOT_FOUND, "the VM is not being recorded"),
    }
}

/// Ends the recording in good order; answers when it is durable. The VM goes on.
#[utoipa::path(delete, path = "/vm/record", responses(
    (status = OK, body = StateReply),
    (status = CONFLICT, body = ErrorReply, description = "None is being made")
))]
async fn end_record(Extract(api): Extract<Api>) -> Response {
    if api.keeper.record_status().is_none() {
        return refuse(StatusCode::CONFLICT, "the VM is not being recorded");
    }
    let answer = answer(api.control.request(Verb::EndRecording)).await;
    let keeper = api.keeper;
    // It may wait until disks are read.
    let forgotten = tokio::task::spawn_blocking(move || keeper.set_recorded(None)).await;
    match forgotten {
        Ok(()) => answer,
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Serves gdb from now on; the guest stands still while gdb has it.
#[utoipa::path(put, path = "/vm/debug", request_body = DebugRequest, responses(
    (status = OK, body = DebugReply),
    (status = BAD_REQUEST, body = ErrorReply),
    (status = CONFLICT, body = ErrorReply, description = "gdb cannot be served")
))]
async fn debug(
    Extract(api): Extract<Api>,
    request: Result<Json<DebugRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    // It reads a file that may be large.
    let server = api.debug;
    match tokio::task::spawn_blocking(move || server.start(&request)).await {
        Ok(Ok(reply)) => Json(reply).into_response(),
        Ok(Err(why)) => refuse(StatusCode::CONFLICT, &why),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The present state, then each change of state, as server-sent events named `state`.
#[utoipa::path(get, path = "/events", responses(
    (status = OK, body = StateEvent, content_type = "text/event-stream")
))]
async fn events(Extract(api): Extract<Api>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = api.lifecycle.subscribe();
    let now = StateEvent { state: api.lifecycle.state(), reason: None, status: None };
    Sse::new(unfold(Subscription { now: Some(now), changes }, next_event))
        .keep_alive(KeepAlive::default())
}

struct Subscription {
    /// To be told first.
    now: Option<StateEvent>,
    changes: broadcast::Receiver<StateEvent>,
}

async fn next_event(
    mut subscription: Subscription,
) -> Option<(Result<Event, Infallible>, Subscription)> {
    let event = match subscription.now.take() {
        Some(now) => now,
        None => loop {
            match subscription.changes.recv().await {
                Ok(event) => break event,
                // A reader that slow gets the latest ones.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        },
    };
    let data = serde_json::to_string(&event).unwrap_or_default();
    Some((Ok(Event::default().event("state").data(data)), subscription))
}

async fn answer(answer: oneshot::Receiver<Result<State, Refusal>>) -> Response {
    match answer.await.unwrap_or(Err(Refusal::Ended)) {
        Ok(state) => Json(StateReply { state }).into_response(),
        Err(refusal) => {
            let status = match refusal {
                Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
                Refusal::State { .. } | Refusal::NotRecorded | Refusal::Ended => {
                    StatusCode::CONFLICT
                }
            };
            refuse(status, &refusal.to_string())
        }
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(ErrorReply { error: error.into() })).into_response()
}
