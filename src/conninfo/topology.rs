//! [`Topology`]: how a cluster is asked for its nodes.

/// How the manager asks a cluster for its nodes. The guide says [when to use
/// it](crate::guide::failover#know-the-nodes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Topology {
    /// Not at all.
    #[default]
    Off,
    /// By the functions of Amazon Aurora: `aurora_replica_status()`, and for a global database
    /// `aurora_global_db_instance_status()`.
    Aurora,
    /// By the function of a Multi-AZ DB cluster: `rds_tools.show_topology()`.
    MultiAz,
}

impl Topology {
    /// Returns `None` if the text is none of `off`, `aurora` and `multi-az`.
    pub(super) fn parse(text: &str) -> Option<Topology> {
        let all =
            [("off", Topology::Off), ("aurora", Topology::Aurora), ("multi-az", Topology::MultiAz)];
        all.into_iter().find(|(name, _)| *name == text).map(|(_, topology)| topology)
    }
}
