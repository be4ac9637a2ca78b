"""Two whole sites in one process: real TLS, real gRPC, real sockets, and a hypervisor in memory on each host.

sites       the sites, their programs (each can be stopped and started again), and an operator
conftest    a fixture for both sites, and shorter pauses
"""
