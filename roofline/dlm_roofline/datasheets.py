"""What vendors say of their devices: one table, a row a device, every figure dense.

Vendors print the rates of matrix products with 2:4 sparsity; dense work has half of them, which is
what stands here. Rates are those that torch's products can have, which accumulate in fp32 (integers
in int32): a GeForce card's bf16, fp16 and fp8 rates are halved by that, and the higher ones that
its vendor also states, of products accumulated in fp16, are left out.

Exponentials are in no datasheet. On NVIDIA's devices an SM takes 16 special functions a clock (CUDA
programming guide, throughput of native arithmetic instructions, compute capabilities 8.0 to 12.0)
and has 128 fp32 lanes, or 64 in an A100, of 2 FLOPs a clock. So the vendor's fp32 rate, which is at
the boost clock, over 16, or over 8, is SMs x 16 x boost clock.
"""

from dataclasses import dataclass

from .ceilings import Ceiling, Ceilings
from .predict import Roof

_NVLINK_3, _NVLINK_4, _NVLINK_5 = 300.0, 450.0, 900.0  # GB/s to others: half of what vendors print
_PCIE_4, _PCIE_5 = 32.0, 64.0  # 16 lanes, GB/s one way


@dataclass(frozen=True)
class Datasheet:
    """A vendor's figures of one device.

    name: as torch.cuda.get_device_name gives it. name_short: for command lines.
    bandwidth: bytes/s of the device's memory.
    memory: bytes of it. Vendors write GB for GiB; a driver keeps 1 to 2% for itself.
    matmul: dense matrix products by dtype, FLOP/s, or operations/s of "int8". "tf32" are float32
        inputs rounded to it. "float8_e4m3fn" stands for whichever e4m3 the device has. A dtype
        that has no matrix instruction is missing.
    link: bytes/s that the device sends to its peers, all its NVLink or Infinity Fabric ports
        together, in one direction; of cards without any, over 16 lanes of PCIe. Of PCIe boards with
        an NVLink bridge the bridge's, which joins two of them.
    l2: bytes of the L2 cache; of an MI300X the eight dies' together, without its Infinity Cache.
    exps: exponentials/s; None where the vendor states no rate of special functions.
    source: the documents that the figures are from.
    """

    name: str
    name_short: str
    bandwidth: float
    memory: int
    matmul: dict[str, float]
    link: float
    l2: int
    exps: float | None
    source: str

    def roof(self, dtype: str) -> Roof:
        """The vendor's roof over work in `dtype`."""
        return Roof(self.bandwidth, self.matmul[dtype], self.exps)

    def ceilings(self) -> Ceilings:
        """The figures as ceilings of no run; what a datasheet lacks is None."""

        def stated(rate: float) -> Ceiling:
            return Ceiling(rate, rate, runs=0)

        bandwidth = stated(self.bandwidth)
        matmul = {dtype: stated(rate) for dtype, rate in self.matmul.items()}
        exps = None if self.exps is None else stated(self.exps)
        return Ceilings(bandwidth, bandwidth, bandwidth, matmul, exps)


def _sheet(
    name: str,
    name_short: str,
    source: str,
    *,
    tb_s: float,
    gib: int,
    half: float,
    tf32: float,
    fp32: float,
    fp8: float | None,
    int8: float,
    link: float,
    l2_mib: int,
    fp32_over_exps: int | None = 16,
) -> Datasheet:
    """half (bf16 and fp16) to int8 in units of 1e12 a second, link in GB/s."""
    rates = {"bfloat16": half, "float16": half, "tf32": tf32, "float32": fp32}
    rates |= {} if fp8 is None else {"float8_e4m3fn": fp8}
    rates["int8"] = int8
    return Datasheet(
        name=name,
        name_short=name_short,
        bandwidth=tb_s * 1e12,
        memory=gib << 30,
        matmul={dtype: rate * 1e12 for dtype, rate in rates.items()},
        link=link * 1e9,
        l2=l2_mib << 20,
        exps=None if fp32_over_exps is None else fp32 * 1e12 / fp32_over_exps,
        source=source,
    )


_A100 = {
    **{"half": 312, "tf32": 156, "fp32": 19.5, "fp8": None, "int8": 624},
    **{"link": _NVLINK_3, "l2_mib": 40, "fp32_over_exps": 8},
}
_GH100_SXM = {
    **{"half": 989.4, "tf32": 494.7, "fp32": 66.9, "fp8": 1978.9, "int8": 1978.9},
    "link": _NVLINK_4,
}

# Keyed by torch.cuda.get_device_name, whole: "NVIDIA H200 NVL" is another device.
DATASHEETS = {
    sheet.name: sheet
    for sheet in (
        _sheet(
            "NVIDIA A100-SXM4-40GB",
            "a100-40gb",
            "NVIDIA A100 Tensor Core GPU architecture whitepaper; NVIDIA A100 datasheet",
            **{"tb_s": 1.555, "gib": 40, **_A100},
        ),
        _sheet(
            "NVIDIA A100-SXM4-80GB",
            "a100-80gb",
            "NVIDIA A100 80GB datasheet; NVIDIA A100 Tensor Core GPU architecture whitepaper (L2)",
            **{"tb_s": 2.039, "gib": 80, **_A100},
        ),
        _sheet(
            "NVIDIA A100 80GB PCIe",
            "a100-pcie",
            "NVIDIA A100 80GB datasheet; NVIDIA A100 Tensor Core GPU architecture whitepaper (L2)",
            **{"tb_s": 1.935, "gib": 80, **_A100},
        ),
        _sheet(
            "NVIDIA H100 80GB HBM3",
            "h100",
            "NVIDIA H100 datasheet, SXM; NVIDIA H100 Tensor Core GPU architecture whitepaper",
            **{"tb_s": 3.35, "gib": 80, **_GH100_SXM, "l2_mib": 50},
        ),
        _sheet(
            "NVIDIA H100 PCIe",
            "h100-pcie",
            "NVIDIA H100 PCIe product brief; NVIDIA H100 Tensor Core GPU architecture whitepaper",
            **{"tb_s": 2.0, "gib": 80, "half": 756, "tf32": 378, "fp32": 51.2, "fp8": 1513},
            **{"int8": 1513, "link": _NVLINK_3, "l2_mib": 50},
        ),
        _sheet(
            "NVIDIA H100 NVL",
            "h100-nvl",
            "NVIDIA H100 datasheet, NVL; NVIDIA H100 Tensor Core GPU architecture whitepaper (L2)",
            **{"tb_s": 3.9, "gib": 94, "half": 835.5, "tf32": 417.5, "fp32": 60, "fp8": 1670.5},
            **{"int8": 1670.5, "link": _NVLINK_3, "l2_mib": 50},
        ),
        _sheet(
            "NVIDIA H200",
            "h200",
            "NVIDIA H200 datasheet, SXM; L2 as the driver reports it",
            **{"tb_s": 4.8, "gib": 141, **_GH100_SXM, "l2_mib": 60},
        ),
        _sheet(
            "NVIDIA B200",
            "b200",
            "NVIDIA Blackwell architecture brief, HGX B200; NVIDIA DGX B200 datasheet (memory);"
            " L2 as the driver reports it",
            **{"tb_s": 8.0, "gib": 180, "half": 2250, "tf32": 1100, "fp32": 80, "fp8": 4500},
            **{"int8": 4500, "link": _NVLINK_5, "l2_mib": 126},
        ),
        _sheet(
            "NVIDIA GB200",
            "gb200",
            "NVIDIA GB200 NVL72 datasheet, over its 72 GPUs; L2 as the driver reports it",
            **{"tb_s": 8.0, "gib": 186, "half": 2500, "tf32": 1250, "fp32": 80, "fp8": 5000},
            **{"int8": 5000, "link": _NVLINK_5, "l2_mib": 126},
        ),
        _sheet(
            "AMD Instinct MI300X",
            "mi300x",
            "AMD Instinct MI300X data sheet; AMD CDNA 3 architecture whitepaper (L2)",
            **{"tb_s": 5.3, "gib": 192, "half": 1307.4, "tf32": 653.7, "fp32": 163.4},
            **{"fp8": 2614.9, "int8": 2614.9},
            **{"link": 7 * 64.0, "l2_mib": 8 * 4, "fp32_over_exps": None},
        ),
        _sheet(
            "NVIDIA GeForce RTX 4090",
            "rtx-4090",
            "NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090, fp32 accumulation",
            **{"tb_s": 1.008, "gib": 24, "half": 165.2, "tf32": 82.6, "fp32": 82.6},
            **{"fp8": 330.3, "int8": 660.6, "link": _PCIE_4, "l2_mib": 72},
        ),
        _sheet(
            "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
            "rtx-pro-6000",
            "NVIDIA RTX Blackwell PRO GPU architecture whitepaper; NVIDIA RTX PRO 6000 Blackwell"
            " Workstation Edition datasheet",
            **{"tb_s": 1.792, "gib": 96, "half": 503.8, "tf32": 251.9, "fp32": 126.0},
            **{"fp8": 1007.6, "int8": 1007.6, "link": _PCIE_5, "l2_mib": 128},
        ),
    )
}


def datasheet_of(name: str) -> Datasheet:
    """The datasheet of a device by torch's name for it or by its short one, in any case.

    Raises:
        ValueError: there is none, with the short names of those there are.
    """
    for sheet in DATASHEETS.values():
        if name.lower() in (sheet.name.lower(), sheet.name_short):
            return sheet
    known = ", ".join(sheet.name_short for sheet in DATASHEETS.values())
    raise ValueError(f"there is no datasheet of {name!r}; there are those of {known}")
