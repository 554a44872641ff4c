//! `images collect`: removes image content that nothing needs. Only Homerun has it; it also happens by itself every hour.

use serde_json::json;
use ureq::http::Method;

use crate::call::{Content, Server};
use crate::{Error, Order, Outside, print_text};

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, seconds: u64) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let body = json!({ "olderThan": format!("{seconds}s") });
    let answer = server.json(
        outside,
        &Method::POST,
        server.api(),
        "/homerun/v1/images:collect",
        Content::Json(&body),
    )?;
    if let Some(format) = order.format {
        return print_text(outside, &format.one(&answer));
    }
    let number = |field: &str| answer[field].as_u64().unwrap_or(0);
    outside.say(&format!(
        "Removed {} blobs ({} bytes) and {} unpacked layers; {} bytes are stored.",
        number("blobs"),
        number("bytes"),
        number("layers"),
        number("storedBytes")
    ));
    Ok(())
}
