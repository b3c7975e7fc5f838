// What this machine lets the process use: instruction sets, caches, processors
// and memory, the container's limits included. Reads the system; changes
// nothing.
#ifndef ATTND_CORE_MACHINE_H_
#define ATTND_CORE_MACHINE_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace attnd {

// Instruction sets that kernels exist for, narrowest first.
enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };

std::string_view IsaName(Isa isa);  // "avx512_bf16"
std::optional<Isa> ParseIsa(std::string_view name);

// The set whose f32 kernels run where products are not native bf16.
Isa F32Isa(Isa isa);

// The sets that are both compiled in and offered by this processor, widest
// first. Never empty; without kScalar where the compiler may use AVX2 anywhere.
// avx512_bf16 and amx_bf16 are avx512 with native bf16 products, of vectors and
// of tiles.
std::vector<Isa> SupportedIsas();

// What a plan depends on.
struct MachineInfo {
  Isa isa = Isa::kScalar;
  int64_t l2_bytes = 1 << 20;

  // This machine, with its fastest set: the widest, but avx512_bf16 only where
  // its dot products outrun multiply-adds.
  static MachineInfo Detect();
};

// Processors that the affinity mask and the cgroup's quota allow, rounded
// down, at least 1. Reads both cgroup versions, and every level above ours.
int AvailableThreads();

// Bytes that the process may hold: the tightest cgroup limit, or the physical
// memory where none is set.
int64_t AvailableMemoryBytes();

// The parts of the two above that read files, for tests: `root` stands for
// "/sys/fs/cgroup", `self` for "/proc/self/cgroup".
std::optional<double> CgroupCpuQuota(std::string_view root,
                                     std::string_view self);
std::optional<int64_t> CgroupMemoryLimitBytes(std::string_view root,
                                              std::string_view self);

}  // namespace attnd

#endif  // ATTND_CORE_MACHINE_H_
