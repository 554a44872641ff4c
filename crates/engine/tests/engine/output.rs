//! What an instance prints.

use model::Stream;

use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn every_line_arrives_with_its_stream() {
    let mut lab = Lab::open().await;
    let id = lab.start(lab.spec(&["exit", "0"])).await;
    let line = lab.line(|line| line.stream == Stream::Stdout).await;
    assert_eq!((line.text.as_str(), &line.instance), ("to stdout", &id));
    assert_eq!(line.of.name.to_string(), "guest-00001-abc");
    let id = lab.start(lab.spec(&["exit", "0"])).await;
    let line = lab
        .line(|line| line.stream == Stream::Stderr && line.instance == id)
        .await;
    assert_eq!(line.text, "to stderr");
    lab.exit(&id).await;
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_arrives_while_the_instance_lives() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;
    lab.text(&id, "/say/hello").await;
    let line = lab.line(|line| line.stream == Stream::Stdout).await;
    assert_eq!((line.text.as_str(), line.instance), ("hello", id));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_line_is_split_and_an_open_one_is_told_at_the_end() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&["long", "600000"])).await;
    let mut lengths = Vec::new();
    for _ in 0..3 {
        lengths.push(lab.line(|line| line.stream == Stream::Stdout).await.text.len());
    }
    assert_eq!(lengths, [262_144, 262_144, 75_712]);
    lab.engine.stop(&id, std::time::Duration::ZERO).await.expect("known");
    let exit = lab.exit(&id).await;
    assert_eq!(exit.last_lines.last().map(String::as_str), Some("no line end"));
    assert_eq!(exit.last_lines[0].len(), 500);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_find_no_room_are_counted() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;
    // That of the startup probe takes up no room.
    lab.line(|line| line.stream == Stream::System).await;
    for number in 0..1010 {
        lab.text(&id, &format!("/say/{number}")).await;
    }
    let begin = std::time::Instant::now();
    while lab.engine.dropped_lines() < 10 {
        assert!(begin.elapsed() < crate::lab::PATIENCE, "{}", lab.engine.dropped_lines());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(lab.engine.dropped_lines(), 10);
    lab.close().await;
}
