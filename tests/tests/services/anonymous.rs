//! What everybody may ask for: all of it is in one list, prepared once, and none of it runs or loads anything.

use daybook_service::server::ANONYMOUS;
use daybook_tests::rest::Rest;
use daybook_tests::stack::Stack;
use http::Method;

#[tokio::test]
async fn what_everybody_may_ask_for_is_answered_without_a_key_and_not_sent_twice() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    for service in [&stack.command, &stack.query] {
        let stranger = Rest::new(&service.url(), "");
        let ask =
            async |path: &str, headers: &[(&str, &str)]| stranger.send(Method::GET, path, headers, "").await;
        let over_http = ANONYMOUS.iter().filter(|route| !route.contains(".v1"));
        for route in over_http {
            let path = route.replace("{slug}", "version-conflict");
            let answer = ask(&path, &[]).await?;
            assert_eq!(answer.status, 200, "{path}");
            if *route == "/healthz" {
                continue;
            }
            let tag = answer.header("etag");
            let again = ask(&path, &[("if-none-match", tag)]).await?;
            assert_eq!(
                (again.status, again.header("etag"), again.body.len()),
                (304, tag, 0),
                "{path}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_documentation_has_every_operation_and_a_browser_lets_it_do_nothing() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    for service in [&stack.command, &stack.query] {
        let stranger = Rest::new(&service.url(), "");
        let ask = async |path: &str| stranger.send(Method::GET, path, &[], "").await;
        let (page, description) = (ask("/docs").await?, ask("/openapi.json").await?.json());
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        let policy = page.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-"),
            "{policy}"
        );
        let html = std::str::from_utf8(&page.body)?;
        for path in description["paths"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(path, _)| path)
        {
            assert!(html.contains(path.as_str()), "{path} is not in the page");
        }
        for forbidden in ["<script", "src=", "http://", "@import", "url("] {
            assert!(!html.contains(forbidden), "{forbidden} is in the page");
        }
    }
    Ok(())
}
