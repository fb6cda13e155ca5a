//! One cluster of Kubernetes nodes with kernels of their own serves all tests of this program.

mod ground;
mod identity;
mod idle;
mod life;
mod volume;
