//! What a request is for: checked before anything else of it.

use crate::error::Refusal;
use http::{HeaderMap, Method, Version, header::HOST, request::Parts};

/// The one resource.
const EVENTS_PATH: &str = "/v1/events";
/// Longest target, in bytes: nothing here needs a query, and proxies grow none of this size.
const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Checks the request's target, host and method.
pub(crate) fn check(head: &Parts) -> Result<(), Refusal> {
    let (path, query) = (head.uri.path(), head.uri.query());
    if path.len() + query.map_or(0, str::len) > MAX_TARGET_BYTES {
        return Err(Refusal::TargetTooLong { limit: MAX_TARGET_BYTES });
    }
    // Two hosts, or none, may have been two targets on the way here. Older and newer versions need no such line.
    if head.version == Version::HTTP_11 && !has_one_host(&head.headers) {
        return Err(Refusal::BadHost);
    }
    if path != EVENTS_PATH {
        return Err(Refusal::NotFound);
    }
    if head.method != Method::POST {
        return Err(Refusal::MethodNotAllowed);
    }
    Ok(())
}

fn has_one_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    hosts.next().is_some() && hosts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, request::Builder};

    fn verdict(request: Builder) -> Result<(), Refusal> {
        check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn only_posts_of_events_to_one_host_pass() {
        let post = |path: &str| Request::post(path).header(HOST, "a");
        assert_eq!(verdict(post("/v1/events?x=1")), Ok(()));
        assert_eq!(verdict(post("/v1/event")), Err(Refusal::NotFound));
        assert_eq!(verdict(post("/v1/events").method("GET")), Err(Refusal::MethodNotAllowed));
        assert_eq!(verdict(post("/v1/events").header(HOST, "b")), Err(Refusal::BadHost));
        assert_eq!(verdict(Request::post("/v1/events")), Err(Refusal::BadHost));
        assert_eq!(verdict(Request::post("/v1/events").version(Version::HTTP_2)), Ok(()));
        let long = format!("/v1/events?{}", "x".repeat(MAX_TARGET_BYTES));
        assert_eq!(verdict(post(&long)), Err(Refusal::TargetTooLong { limit: MAX_TARGET_BYTES }));
    }
}
