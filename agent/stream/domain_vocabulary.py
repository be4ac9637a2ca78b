"""The elements and attributes of a domain definition that may come from another site; `vocabulary` says how to read the table.

What is here is the guest's own machine, and what it may use of the host: images, networks, files below folders that were allowed
(`domain_rules` holds their values). What is not here, among others: hostdev and filesystem (unless granted, value by value), shmem,
vsock's and chardevs' ways to the host's network, scripts, helper programs, secrets, scheduling above other VMs, labels other than
libvirt's own, and everything of the namespace `qemu:`, which hands QEMU options past libvirt.

Source: https://libvirt.org/formatdomain.html, as of libvirt 9.0 and 11.3.
"""

from __future__ import annotations

from agent.stream import vocabulary

_ADDRESS = """
address type domain bus slot function multifunction controller target unit port iobase irq cssid ssid devno reg base
  zpci uid fid
alias name
acpi index
"""
_DEVICE = (
    _ADDRESS
    + """
boot order loadparm
driver name iommu ats packed page_per_vq queues
"""
)
_CHARDEV = (
    _ADDRESS
    + """
source path mode channel append
  reconnect enabled timeout
protocol type
log file append
target type port name
  model name
"""
)
_CPU = """
model = fallback vendor_id
vendor =
topology sockets dies clusters cores threads
cache level mode
maxphysaddr mode bits limit
feature name policy
numa
  cell id cpus memory unit memAccess discard
    distances
      sibling id value
    cache level associativity policy
      size value unit
      line value unit
  interconnects
    latency initiator target cache type value
    bandwidth initiator target cache type value unit
"""

_DOMAIN = """
domain type!
  name =
  uuid =
  genid =
  title =
  description =
  metadata *
  memory = unit dumpCore
  currentMemory = unit
  maxMemory = unit slots
  memoryBacking
    hugepages
      page size unit nodeset
    nosharepages
    locked
    source type
    access mode
    allocation mode threads
    discard
  memtune
    hard_limit = unit
    soft_limit = unit
    swap_hard_limit = unit
    min_guarantee = unit
  vcpu = placement cpuset current
  vcpus
    vcpu id enabled hotpluggable order
  iothreads =
  iothreadids
    iothread id thread_pool_min thread_pool_max
      poll max grow shrink
  defaultiothread thread_pool_min thread_pool_max
  cputune
    shares =
    period =
    quota =
    global_period =
    global_quota =
    emulator_period =
    emulator_quota =
    iothread_period =
    iothread_quota =
    vcpupin vcpu cpuset
    emulatorpin cpuset
    iothreadpin iothread cpuset
  numatune
    memory mode nodeset placement
    memnode cellid mode nodeset
  blkiotune
    weight =
  resource
    partition =
  sysinfo type
    bios
      entry = name
    system
      entry = name
    baseBoard
      entry = name
    chassis
      entry = name
    oemStrings
      entry =
  os firmware
    type = arch machine
    firmware
      feature enabled name
    loader = readonly secure type stateless format
    nvram = template templateFormat format
    kernel =
    initrd =
    cmdline =
    dtb =
    boot dev
    bootmenu enable timeout
    smbios mode
    bios useserial rebootTimeout
    acpi
      table = type
  features
    acpi
    apic eoi
    pae
    hap state
    privnet
    viridian
    pvspinlock state
    pmu state
    vmport state
    gic version
    smm state
      tseg = unit
    ioapic driver
    hpt resizing
      maxpagesize = unit
    htm state
    nested-hv state
    msrs unknown
    ccf-assist state
    cfpc value
    sbbc value
    ibs value
    tcg
      tb-cache = unit
    async-teardown enabled
    ras state
    ps2 state
    kvm
      hidden state
      hint-dedicated state
      poll-control state
      pv-ipi state
      dirty-ring state size
    hyperv mode
      relaxed state
      vapic state
      spinlocks state retries
      vpindex state
      runtime state
      synic state
      stimer state
        direct state
      reset state
      vendor_id state value
      frequencies state
      reenlightenment state
      tlbflush state
        direct state
        extended state
      ipi state
      evmcs state
      avic state
      emsr_bitmap state
      xmm_input state
  cpu &cpu mode match check migratable
  clock offset basis adjustment timezone start
    timer name tickpolicy track mode frequency present
      catchup threshold slew limit
  on_poweroff =
  on_reboot =
  on_crash =
  on_lockfailure =
  pm
    suspend-to-mem enabled
    suspend-to-disk enabled
  perf
    event name enabled
  seclabel type model relabel
  devices
    emulator =
    disk &device type! device model rawio snapshot sgio
      driver type cache io discard detect_zeroes discard_no_unref error_policy rerror_policy queue_size iothread
      driver copy_on_read event_idx ioeventfd
        metadata_cache
          max_size = unit
      source file startupPolicy index
      backingStore
      target dev bus tray removable rotation_rate
      iotune
        total_bytes_sec =
        read_bytes_sec =
        write_bytes_sec =
        total_iops_sec =
        read_iops_sec =
        write_iops_sec =
        total_bytes_sec_max =
        read_bytes_sec_max =
        write_bytes_sec_max =
        total_iops_sec_max =
        read_iops_sec_max =
        write_iops_sec_max =
        size_iops_sec =
        group_name =
      geometry cyls heads secs trans
      blockio logical_block_size physical_block_size discard_granularity
      readonly
      serial =
      wwn =
      vendor =
      product =
    controller &device type index model ports vectors maxGrantFrames
      driver name iommu ats packed page_per_vq queues cmd_per_lun max_sectors ioeventfd iothread
      model name
      target chassisNr chassis port busNr index hotplug
        node =
      master startport
      pcihole64 = unit
    interface &device type! trustGuestRxFilters
      mac address type check
      source network
      target dev managed
      model type
      driver name txmode ioeventfd event_idx queues rx_queue_size tx_queue_size iommu ats packed page_per_vq rss rss_hash_report
        host csum gso tso4 tso6 ecn ufo mrg_rxbuf
        guest csum tso4 tso6 ecn ufo
      bandwidth
        inbound average peak burst floor
        outbound average peak burst
      filterref filter
        parameter name value
      link state
      mtu size
      coalesce
        rx
          frames max
      rom enabled bar
      teaming type persistent
      port isolated
    serial &chardev type!
    parallel &chardev type!
    console &chardev type!
    channel &chardev type!
      source path mode channel append
        reconnect enabled timeout
        clipboard copypaste
        mouse mode
      target state
    graphics type! port autoport websocket listen keymap sharePolicy powerControl connected defaultMode tlsPort
      listen type address
      channel name mode
      image compression
      jpeg compression
      zlib compression
      playback compression
      streaming mode
      clipboard copypaste
      mouse mode
      filetransfer enable
    video &device
      model type ram vram vgamem heads primary blob edid
        acceleration accel2d
        resolution x y
      driver name vgaconf iommu ats packed page_per_vq
    sound &device model multichannel streams
      codec type
      audio id
    audio id type! timerPeriod
      input mixingEngine fixedSettings voices bufferLength
        settings frequency channels format
      output mixingEngine fixedSettings voices bufferLength
        settings frequency channels format
    input &device type! bus model
    hub &device type
    redirdev &device type! bus
    redirfilter
      usbdev class vendor product version allow
    smartcard &device mode! type
    rng &device model
      rate bytes period
      backend = model
    memballoon &device model autodeflate freePageReporting
      stats period
    watchdog &device model action
    panic &device model
    vsock &device model
      cid auto address
    iommu model
      driver intremap caching_mode eim iotlb aw_bits dma_translation passthrough
    nvram &device
    tpm &device model
      backend type! version persistent_state
        active_pcr_banks
          sha1
          sha256
          sha384
          sha512
    memory &device model! access discard
      source
        pagesize = unit
        nodemask =
      target
        size = unit
        node =
        label
          size = unit
        block = unit
        requested = unit
        current = unit
        address base
"""

_GROUPS = {"device": _DEVICE, "chardev": _CHARDEV, "cpu": _CPU}

DOMAIN = vocabulary.read(_DOMAIN, _GROUPS)

# What the source's daemon says beside the definition (libvirt: src/qemu/qemu_migration_cookie.c): no port to listen on, no locks
# that it holds, and nothing for a switch of another kind than libvirt's networks.
COOKIE = vocabulary.read(
    """
qemu-migration
  name =
  uuid =
  hostname =
  hostuuid =
  feature name
  nbd
    disk target capacity
  cpu &cpu mode match check migratable
  allowReboot value
  capabilities
    cap name auto
  blockDirtyBitmaps
    disk target
      bitmap name alias
  network
    interface index vporttype
  statistics
    started =
    stopped =
    sent =
    delta =
    time_elapsed =
    time_remaining =
    downtime =
    setup_time =
    memory_total =
    memory_processed =
    memory_remaining =
    memory_bps =
    memory_constant =
    memory_normal =
    memory_normal_bytes =
    memory_dirty_rate =
    memory_iteration =
    memory_postcopy_requests =
    memory_page_size =
    disk_total =
    disk_processed =
    disk_remaining =
    disk_bps =
    compression_cache =
    compression_bytes =
    compression_pages =
    compression_cache_misses =
    compression_overflow =
    auto_converge_throttle =
""",
    _GROUPS,
)
