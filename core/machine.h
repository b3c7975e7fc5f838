// What this machine lets the process use: its fastest instruction set, caches,
// processors and memory. A limit of the container (a cgroup) counts if it is
// below what the machine has. The functions only read settings.
#ifndef ATTND_CORE_MACHINE_H_
#define ATTND_CORE_MACHINE_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/isa.h"

namespace attnd {

// The facts about a machine that a plan depends on.
struct MachineInfo {
  Isa isa = Isa::kScalar;
  int64_t l2_bytes = 1 << 20;

  // Returns the facts about this machine, with FastestIsa().
  static MachineInfo Detect();
};

// The most worker threads that a server takes.
inline constexpr int kMaxThreads = 4096;

// Returns the number of processors that the affinity mask and the cgroup's
// quota allow, rounded down, at least 1. Reads both cgroup versions, and every
// cgroup above the process's own.
int AvailableThreads();

// Returns how many bytes of memory the process may use: the tightest cgroup
// limit, or the physical memory if no limit is set.
int64_t AvailableMemoryBytes();

// Return the limits that the two functions above read from files, or nullopt if
// there is no limit. Tests pass files of their own: `root` stands for
// "/sys/fs/cgroup", `self` for "/proc/self/cgroup".
std::optional<double> CgroupCpuQuota(std::string_view root,
                                     std::string_view self);
std::optional<int64_t> CgroupMemoryLimitBytes(std::string_view root,
                                              std::string_view self);

}  // namespace attnd

#endif  // ATTND_CORE_MACHINE_H_
