//! Sessions with the embedded broker.
#![cfg(feature = "broker")]

mod common;

use common::{options, start, start_with, will};
use mqtt::broker::EmbeddedBroker;
use mqtt::{Bytes, Qos, Version};

#[tokio::test]
async fn messages_and_wills_pass_and_a_new_broker_on_the_port_is_found() {
    let broker = EmbeddedBroker::start().await.unwrap();
    assert_eq!(broker.url(), format!("mqtt://127.0.0.1:{}", broker.port()));
    for version in [Version::V5, Version::V311] {
        let mut options = options(&broker.url());
        options.version = version;
        let mut watcher = start(options.clone(), "watcher", &["echo/#", "wills/#"]);
        watcher.connected().await;
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
            watcher.send("echo/x", Bytes::from(vec![1; 50_000]), qos);
            assert_eq!(watcher.message().await.payload.len(), 50_000);
        }
        let mut mortal = start_with(options, "mortal", &[], Some(will("wills/x", "gone")));
        mortal.connected().await;
        drop(mortal);
        assert_eq!(watcher.message().await.payload, "gone");
    }
    let mut client = start(options(&broker.url()), "client", &["echo/#"]);
    let first = client.connected().await;
    let port = broker.port();
    broker.shutdown().await;
    client.disconnected().await;
    let _second_broker = EmbeddedBroker::start_on(port).await.unwrap();
    assert!(client.connected().await > first);
}

#[tokio::test]
async fn several_brokers_live_in_one_process() {
    let brokers = [
        EmbeddedBroker::start().await.unwrap(),
        EmbeddedBroker::start().await.unwrap(),
    ];
    assert_ne!(brokers[0].port(), brokers[1].port());
    for broker in brokers {
        start(options(&broker.url()), "client", &[])
            .connected()
            .await;
        broker.shutdown().await;
    }
}
