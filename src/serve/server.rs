//! A server from its first connection to its end.

use super::catalogue::Catalogue;
use super::connections::Connections;
use super::edge::Edge;
use super::limits::Limits;
use super::scheduler::Scheduler;
use super::senders::Senders;
use crate::console::log;
use crate::invalid;
use crate::stop::{self, Place, StopRequest};
use anyhow::{Context, Result};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::channel;

/// A server that is reachable but does not answer yet.
pub struct Server {
    listener: TcpListener,
    /// Its own address; the port is the one that was given, or a free one for port 0.
    pub address: SocketAddr,
}

impl Server {
    /// # Errors
    /// A host that is not known, an address that is taken or not this machine's.
    pub fn bind(host: &str, port: u16) -> Result<Self> {
        let listener =
            TcpListener::bind((host, port)).map_err(|why| invalid!("cannot listen on {host}:{port}: {why}"))?;
        let address = listener.local_addr().context("asking for the server's address")?;
        Ok(Self { listener, address })
    }

    /// Answers until a signal comes. `key`: what requests must bear, if anything; `on_ready` is called once requests and signals
    /// are answered.
    ///
    /// # Errors
    /// Threads that cannot be started; those of `on_ready` and of [`Scheduler::run`].
    pub fn run(
        self,
        models: Catalogue,
        limits: Limits,
        key: Option<&str>,
        on_ready: impl FnOnce(SocketAddr) -> Result<()>,
    ) -> Result<()> {
        let stop = StopRequest::listen(log::notice)?;
        let (sequences, waiting) = channel();
        let Catalogue { names, encoder, decoders } = models;
        let spec = encoder.spec.clone();
        let is_local = self.address.ip().is_loopback();
        let edge = Arc::new(Edge::new(names, encoder, limits.clone(), Senders::new(key, is_local), sequences));
        let mut connections = Connections::open(self.listener, edge, limits.request)?;
        let part = stop::Part::begin();
        stop::at(Place::After { what: "the running answers", otherwise: "without finishing them" });
        on_ready(self.address)?;
        let answered = Scheduler::new(spec, decoders, &limits, waiting).run(&stop, || connections.close());
        connections.join();
        drop(part);
        answered
    }
}
