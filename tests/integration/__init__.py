"""The whole product against what can happen to it: real hosts, real guests, a WAN that fails, processes that die.

conftest    the one lab of the session, and a guest that is well before each test
story       what an operator does, what goes wrong, and what must hold afterwards

test_cancel                 the operator changes his mind
test_killed                 an agent or gateway dies, in each phase
test_destination_trouble    the destination's libvirtd, QEMU or storage fails
test_wan_cut                the sites lose each other
test_network_faults         the table of what happens to the network in mid-transfer, and what must hold
test_autostart              who starts the VM when a host boots
test_operator_errors        wrong requests, wrong certificates
test_preflight_lab          what must be found before anything is touched
test_round_trips            ten moves, and settling
test_lab_wan                the lab's line does what it is told
test_lab_down               nothing is left of the lab itself
"""
