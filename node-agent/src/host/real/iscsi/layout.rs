//! Where iscsid expects what in a request. The request is a private C structure of open-iscsi without a version of its own, so
//! it is spoken only to versions that stand here.
//!
//! The numbers were measured with a C program that includes `usr/mgmt_ipc.h` of each release's source and prints `offsetof`
//! and `sizeof` on x86_64 (LP64). Releases 2.1.5 to 2.1.9 agree in every field and in every default that is set here; 2.1.8 (Debian
//! 12) is what the tests on a real kernel run. 2.1.10 is left out although it agrees: it hangs at login with manual scan
//! (open-iscsi issue 484). 2.1.11 has another layout.

/// Layout of one family of versions: offsets in bytes from the beginning of the request.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Versions with this layout.
    pub versions: &'static [&'static str],
    /// Size of a request.
    pub request_size: usize,
    /// Size of an answer.
    pub answer_size: usize,
    /// Session id.
    pub sid: usize,
    /// Target name, 255 bytes.
    pub name: usize,
    /// Target portal group, -1 for any.
    pub tpgt: usize,
    /// How the record was found.
    pub disc_type: usize,
    /// Priority of the transmitting thread.
    pub xmit_thread_priority: usize,
    /// Commands per session.
    pub cmds_max: usize,
    /// Commands per LUN.
    pub queue_depth: usize,
    /// How often the first login is tried.
    pub initial_login_retry_max: usize,
    /// Sessions per record.
    pub nr_sessions: usize,
    /// Whether all LUNs are scanned after login.
    pub scan: usize,
    /// 0 none, 1 CHAP.
    pub authmethod: usize,
    /// CHAP name, 256 bytes.
    pub username: usize,
    /// CHAP secret, 256 bytes.
    pub password: usize,
    /// Length of the secret.
    pub password_length: usize,
    /// CHAP name of the target, 256 bytes.
    pub username_in: usize,
    /// CHAP secret of the target, 256 bytes.
    pub password_in: usize,
    /// Length of the target's secret.
    pub password_in_length: usize,
    /// Five CHAP algorithms.
    pub chap_algs: usize,
    /// Seconds until I/O fails after a lost connection.
    pub replacement_timeout: usize,
    /// Seconds, as the next three.
    pub abort_timeout: usize,
    /// See `abort_timeout`.
    pub host_reset_timeout: usize,
    /// See `abort_timeout`.
    pub lu_reset_timeout: usize,
    /// See `abort_timeout`.
    pub tgt_reset_timeout: usize,
    /// Login keys of RFC 7143 from here on.
    pub immediate_data: usize,
    /// `FirstBurstLength`.
    pub first_burst_length: usize,
    /// `MaxBurstLength`.
    pub max_burst_length: usize,
    /// `DefaultTime2Wait`.
    pub default_time2wait: usize,
    /// `MaxConnections`.
    pub max_connections: usize,
    /// `MaxOutstandingR2T`.
    pub max_outstanding_r2t: usize,
    /// Whether commands are aborted fast at a LUN reset.
    pub fast_abort: usize,
    /// Portal address, 1025 bytes.
    pub address: usize,
    /// Portal port.
    pub port: usize,
    /// TCP window.
    pub window_size: usize,
    /// Seconds for a login.
    pub login_timeout: usize,
    /// Seconds for a logout.
    pub logout_timeout: usize,
    /// Seconds for CHAP.
    pub auth_timeout: usize,
    /// Seconds between NOPs.
    pub noop_out_interval: usize,
    /// Seconds until a NOP must be answered.
    pub noop_out_timeout: usize,
    /// `MaxRecvDataSegmentLength`.
    pub max_recv_data_segment_length: usize,
    /// Interface record, 65 bytes.
    pub iface_name: usize,
    /// Transport, 16 bytes.
    pub transport_name: usize,
}

static LAYOUTS: [Layout; 1] = [Layout {
    versions: &["2.1.5", "2.1.6", "2.1.7", "2.1.8", "2.1.9"],
    request_size: 16104,
    answer_size: 2464,
    sid: 8,
    name: 32,
    tpgt: 288,
    disc_type: 15064,
    xmit_thread_priority: 312,
    cmds_max: 316,
    queue_depth: 320,
    initial_login_retry_max: 324,
    nr_sessions: 328,
    scan: 332,
    authmethod: 336,
    username: 340,
    password: 596,
    password_length: 852,
    username_in: 856,
    password_in: 1112,
    password_in_length: 1368,
    chap_algs: 1372,
    replacement_timeout: 1392,
    abort_timeout: 1396,
    host_reset_timeout: 1400,
    lu_reset_timeout: 1404,
    tgt_reset_timeout: 1408,
    immediate_data: 1428,
    first_burst_length: 1432,
    max_burst_length: 1436,
    default_time2wait: 1440,
    max_connections: 1448,
    max_outstanding_r2t: 1452,
    fast_abort: 1460,
    address: 2252,
    port: 3280,
    window_size: 3284,
    login_timeout: 3292,
    logout_timeout: 3296,
    auth_timeout: 3300,
    noop_out_interval: 3308,
    noop_out_timeout: 3312,
    max_recv_data_segment_length: 3316,
    iface_name: 3360,
    transport_name: 14534,
}];

/// The layout of a version, on a machine where it was measured.
pub fn of_version(version: &str) -> Option<&'static Layout> {
    cfg!(all(target_arch = "x86_64", target_endian = "little"))
        .then(|| LAYOUTS.iter().find(|l| l.versions.contains(&version)))
        .flatten()
}
