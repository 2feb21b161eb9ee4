"""The ACPI tables of a PVH domain, as Xen's libxl builds them.

Source: ACPI specification 6.4, chapters 5 and 20; addresses and values from Xen 4.17 (tools/libacpi).
"""

import struct

ACPI_BASE = 0xFC00_0000
ACPI_BYTES = 0x9000
ACPI_USED_BYTES = 0x8040
RSDP_ADDRESS = ACPI_BASE + 0x8000
_FACS_ADDRESS = ACPI_BASE + 0x1000
_DSDT_ADDRESS = _FACS_ADDRESS + 64
_TABLES_END = 0x8000

PM1A_EVENT_PORT = 0xB000
PM1A_CONTROL_PORT = 0xB004
GPE0_PORT = 0xAFE0
RESET_PORT = 0xCF9
_P_BLK = 0xB044
RESET_VALUE = 6
SCI = 9
S5_SLEEP_TYPE = 0

LAPIC_ADDRESS = 0xFEE0_0000

_OEM_ID, _OEM_TABLE, _CREATOR = b"Xen", b"HVM", b"HVML"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_FACS = struct.Struct("<4sIIIIIQB31x")
_FADT_TABLE = (
    # field, format, value: in the order of the specification (table 5.9)
    ("FIRMWARE_CTRL", "I", _FACS_ADDRESS),
    ("DSDT", "I", _DSDT_ADDRESS),
    ("reserved, preferred profile", "H", 0),
    ("SCI_INT", "H", SCI),
    ("SMI_CMD", "I", 0),
    ("ACPI_ENABLE to PSTATE_CNT", "I", 0),
    ("PM1a_EVT_BLK", "I", PM1A_EVENT_PORT),
    ("PM1b_EVT_BLK", "I", 0),
    ("PM1a_CNT_BLK", "I", PM1A_CONTROL_PORT),
    ("PM1b_CNT_BLK", "I", 0),
    ("PM2_CNT_BLK", "I", 0),
    ("PM_TMR_BLK", "I", 0),
    ("GPE0_BLK", "I", GPE0_PORT),
    ("GPE1_BLK", "I", 0),
    ("PM1_EVT_LEN", "B", 4),
    ("PM1_CNT_LEN", "B", 2),
    ("PM2_CNT_LEN", "B", 0),
    ("PM_TMR_LEN", "B", 0),
    ("GPE0_BLK_LEN", "B", 4),
    ("GPE1_BLK_LEN", "B", 0),
    ("GPE1_BASE", "B", 0),
    ("CST_CNT", "B", 0),
    ("P_LVL2_LAT", "H", 0xFFF),
    ("P_LVL3_LAT", "H", 0xFFF),
    ("FLUSH_SIZE, FLUSH_STRIDE", "I", 0),
    ("DUTY_OFFSET to CENTURY", "5s", bytes(5)),
    ("IAPC_BOOT_ARCH: no VGA, no CMOS RTC", "H", 1 << 2 | 1 << 5),
    ("reserved", "B", 0),
    ("Flags: WBINVD, PROC_C1, PWR_BUTTON, SLP_BUTTON, FIX_RTC, TMR_VAL_EXT, PLATFORM_CLOCK", "I", 0x8175),
    ("RESET_REG", "12s", struct.pack("<BBBBQ", 1, 8, 0, 0, RESET_PORT)),
    ("RESET_VALUE", "B", RESET_VALUE),
    ("ARM_BOOT_ARCH, minor version", "3s", bytes(3)),
    ("X_FIRMWARE_CTRL", "Q", _FACS_ADDRESS),
    ("X_DSDT", "Q", _DSDT_ADDRESS),
    ("X_PM1a_EVT_BLK", "12s", struct.pack("<BBBBQ", 1, 32, 0, 0, PM1A_EVENT_PORT)),
    ("X_PM1b_EVT_BLK", "12s", bytes(12)),
    ("X_PM1a_CNT_BLK", "12s", struct.pack("<BBBBQ", 1, 16, 0, 0, PM1A_CONTROL_PORT)),
    ("X_PM1b_CNT_BLK to HYPERVISOR_ID", "84s", bytes(84)),
)


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes, *, creator: tuple[bytes, int] = (_CREATOR, 0)) -> bytes:
    length = _HEADER.size + len(body)
    head = _HEADER.pack(signature, length, revision, 0, _OEM_ID, _OEM_TABLE, 0, *creator)
    table = bytearray(head + body)
    table[9] = _checksum(table)
    return bytes(table)


def apic_id(vcpu: int) -> int:
    """The LAPIC id of a vCPU: Xen leaves every second one out."""
    return 2 * vcpu


def _fadt() -> bytes:
    body = struct.pack("<" + "".join(code for _, code, _ in _FADT_TABLE), *(value for _, _, value in _FADT_TABLE))
    return _table(b"FACP", 5, body)


def _madt(vcpus: int) -> bytes:
    pcat_compatible = 1
    body = struct.pack("<II", LAPIC_ADDRESS, pcat_compatible)
    for vcpu in range(vcpus):
        body += _local_apic(vcpu)
    return _table(b"APIC", 2, body)


def _local_apic(vcpu: int) -> bytes:
    # An entry of the MADT: the processor's UID, its LAPIC's id, "enabled".
    return struct.pack("<BBBBI", 0, 8, vcpu, apic_id(vcpu), 1)


def _package_length(content: bytes) -> bytes:
    # PkgLength counts its own bytes: 20.2.4 of the specification.
    for following in range(4):
        total = len(content) + 1 + following
        if following == 0 and total < 1 << 6:
            return bytes([total])
        if following and total < 1 << 4 + 8 * following:
            return bytes([following << 6 | total & 15, *(total >> 4).to_bytes(following, "little")])
    raise ValueError(f"{len(content)} bytes are too many for one AML object")


def _aml(opcode: bytes, content: bytes) -> bytes:
    return opcode + _package_length(content) + content


def _name(name: bytes, value: bytes) -> bytes:
    return b"\x08" + name + value


def _byte(value: int) -> bytes:
    return bytes([0x0A, value])


def _processor(vcpu: int) -> bytes:
    """Processor (Pnnn, UID, P_BLK, 6) { Name (_STA, 0xF)  Name (_MAT, its entry in the MADT) }"""
    entry = _local_apic(vcpu)
    head = f"P{vcpu:03}".encode() + struct.pack("<BIB", vcpu, _P_BLK, 6)
    inside = _name(b"_STA", _byte(0xF)) + _name(b"_MAT", _aml(b"\x11", _byte(len(entry)) + entry))
    return _aml(b"\x5b\x83", head + inside)


def _dsdt(vcpus: int) -> bytes:
    # Name (\_S5, Package (4) {0, 0, 0, 0}): what Linux writes to PM1a_CNT to power off.
    sleep_state = _name(b"\\_S5_", _aml(b"\x12", b"\x04" + bytes([S5_SLEEP_TYPE, 0, 0, 0])))
    processors = b"".join(map(_processor, range(vcpus)))
    return _table(b"DSDT", 5, sleep_state + _aml(b"\x10", b"\\_SB_" + processors))


def build(vcpus: int) -> bytes:
    """The tables' memory, to be placed at ACPI_BASE; the RSDP is at RSDP_ADDRESS."""
    memory = bytearray(ACPI_BYTES)
    facs = _FACS.pack(b"FACS", 64, 0, 0, 0, 0, 0, 1)
    position = _FACS_ADDRESS - ACPI_BASE

    def put(table: bytes) -> int:
        nonlocal position
        address = ACPI_BASE + position
        memory[position : position + len(table)] = table
        position += len(table) + -len(table) % 16
        return address

    put(facs)
    put(_dsdt(vcpus))
    listed = [put(_fadt()), put(_madt(vcpus))]
    xsdt = put(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    assert position <= _TABLES_END
    rsdp = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM_ID, 2, 0, _RSDP.size, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    start = RSDP_ADDRESS - ACPI_BASE
    memory[start : start + len(rsdp)] = rsdp
    return bytes(memory)
