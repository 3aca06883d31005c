//! Behaviour that a single server and a cluster share. Each test has one body, which runs against one
//! kind and then the other: `conformance::tags::single::…` and `conformance::tags::cluster::…`.
//!
//! Tests of one kind alone are in the other files of `cache`, and in `cluster`.

mod churn;
mod claims;
mod deployment;
mod fences;
mod foreign_content;
mod law;
mod leases;
mod long_members;
mod second_deletes;
mod tag_maintenance;
mod tags;
mod verbs;

/// Declares the tests of a file, by the names of their bodies. `shared` bodies use the servers that
/// tests share, and `own` bodies start servers of their own. `threads` bodies do so in a runtime of
/// several threads, and `blocking` bodies in a runtime that they make.
macro_rules! on_both {
    (
        $(shared: $($shared:ident),+ $(,)?;)?
        $(own: $($own:ident),+ $(,)?;)?
        $(threads: $($threads:ident),+ $(,)?;)?
        $(blocking: $($blocking:ident),+ $(,)?;)?
    ) => {
        mod single {
            $crate::cache::conformance::on_both! {
                @tests Single, $($($shared)+)?; $($($own)+)?; $($($threads)+)?; $($($blocking)+)?
            }
        }
        mod cluster {
            $crate::cache::conformance::on_both! {
                @tests Cluster, $($($shared)+)?; $($($own)+)?; $($($threads)+)?; $($($blocking)+)?
            }
        }
    };
    (@tests $kind:ident, $($shared:ident)*; $($own:ident)*; $($threads:ident)*; $($blocking:ident)*) => {
        #[allow(unused_imports, reason = "some files have tests of one sort")]
        use $crate::cache::conformance::deployment::{Deployment, Kind};
        $(
            #[tokio::test]
            async fn $shared() {
                super::$shared(&Deployment::shared(Kind::$kind).await).await;
            }
        )*
        $(
            #[tokio::test]
            async fn $own() {
                super::$own(&Deployment::own(Kind::$kind).await).await;
            }
        )*
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $threads() {
                super::$threads(&Deployment::own(Kind::$kind).await).await;
            }
        )*
        $(
            #[test]
            fn $blocking() {
                super::$blocking(Kind::$kind);
            }
        )*
    };
}
use on_both;
