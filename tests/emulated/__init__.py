"""The kernels on processors that are not here, emulated by QEMU."""
