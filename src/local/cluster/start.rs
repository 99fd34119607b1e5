//! Starts a cluster.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use parking_lot::Mutex;

use super::dns::{Dns, Updates};
use super::history::Roles;
use super::members::start_standbys;
use super::names::{Names, address};
use super::{Cluster, Core, Members, topology};
use crate::error::Error;
use crate::local::certificates::Authority;
use crate::local::failed;
use crate::local::folder::Folder;
use crate::local::judge::Judge;
use crate::local::process::Watchdog;
use crate::local::server::{Server, free_port_on};
use crate::token::Endpoint;

/// The limit of Aurora.
pub(in crate::local) const MOST_REPLICAS: usize = 15;
/// As many nodes can be added before a port that is in use is likely.
const ROOM: usize = 4;

/// The settings of a cluster.
#[derive(Debug, Clone)]
pub(in crate::local) struct Settings {
    pub(in crate::local) replicas: usize,
    pub(in crate::local) dns_lag: Duration,
    pub(in crate::local) region: String,
    pub(in crate::local) certificate_names: Vec<String>,
    pub(in crate::local) authority: String,
}

impl Cluster {
    /// Starts all nodes. `prepare` creates roles and databases in the first one.
    pub(in crate::local) fn start(
        settings: &Settings,
        judge: impl Fn(Endpoint) -> Judge,
        prepare: impl Fn(&Server) -> Result<(), Error>,
    ) -> Result<(Cluster, Arc<Judge>), Error> {
        if !cfg!(target_os = "linux") {
            let text = "only Linux has all addresses of 127.0.0.0/8; leave out replicas, or use \
                        Linux";
            return Err(failed("cannot start a cluster")(text));
        }
        let mut tries = 3;
        loop {
            tries -= 1;
            let port = free_port_on((0..=settings.replicas + ROOM).map(address))?;
            let names = Names::new(&settings.region);
            let judge = Arc::new(judge(Endpoint::new(&names.cluster(), port, names.region())?));
            match Cluster::start_on(port, settings, names, judge.clone(), &prepare) {
                // Another process took the port first.
                Err(error) if tries > 0 && error.to_string().contains(IN_USE) => {}
                started => return Ok((started?, judge)),
            }
        }
    }

    fn start_on(
        port: u16,
        settings: &Settings,
        names: Names,
        judge: Arc<Judge>,
        prepare: impl Fn(&Server) -> Result<(), Error>,
    ) -> Result<Cluster, Error> {
        let folder = Folder::create()?;
        let watchdog = Watchdog::start(&folder)?;
        judge.set_verdict_file(folder.write("verdict", b"")?);
        let authority = Authority::new(&settings.authority)?;
        let ca_file = folder.write("ca.pem", &authority.certificate()?)?;
        let roles = Roles { writer: 0, readers: (1..=settings.replicas).collect() };
        let dns = Dns::new(names.clone(), roles, settings.dns_lag, folder.path())
            .map_err(failed("cannot write the file of hosts"))?;
        let core = Arc::new(Core {
            members: Mutex::new(Members {
                nodes: [].into(),
                writer: 0,
                next: settings.replicas + 1,
            }),
            port,
            names,
            judge,
            dns: Arc::new(dns),
            authority: Mutex::new(authority),
            authority_name: settings.authority.clone(),
            certificate_names: settings.certificate_names.clone(),
            ca_file,
            has_ended: AtomicBool::new(false),
            _watchdog: watchdog,
            folder,
        });
        core.start_nodes(settings.replicas, prepare)?;
        let updates = Updates::start(core.dns.clone());
        Ok(Cluster { core, turn: Mutex::new(None), _updates: updates })
    }
}

/// PostgreSQL's text for a port that is in use.
const IN_USE: &str = "Address already in use";

impl Core {
    fn start_nodes(
        &self,
        replicas: usize,
        prepare: impl Fn(&Server) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for index in 0..=replicas {
            let node = Arc::new(self.create_node(index)?);
            self.members.lock().nodes.insert(index, node);
        }
        let nodes = self.nodes();
        let Some((writer, standbys)) = nodes.split_first() else { return Ok(()) };
        writer.server.initdb()?;
        // Faster than a backup of a server that runs.
        standbys.iter().try_for_each(|it| it.server.copy_data_of(&writer.server))?;
        writer.wait_for(&[])?;
        writer.start()?;
        start_standbys(standbys, writer)?;
        self.publish()?;
        self.create_functions(&writer.server)?;
        prepare(&writer.server)?;
        self.settle(writer)
    }

    /// Creates the functions of AWS, also for databases that are created later.
    fn create_functions(&self, server: &Server) -> Result<(), Error> {
        let file = self.folder.path().join(topology::FILE);
        let functions = topology::functions(&file, &self.names);
        let mut superuser = server.superuser("template1")?;
        superuser.batch_execute(&functions).map_err(failed("cannot create the functions of AWS"))
    }
}
