#include "core/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attnd {
namespace {

constexpr const char* kCgroupRoot = "/sys/fs/cgroup";
constexpr const char* kCgroupSelf = "/proc/self/cgroup";

int64_t L2Bytes(int64_t fallback) {
  // Containers and some virtual machines report 0 or -1.
  const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  constexpr int64_t kMin = 256 << 10;
  constexpr int64_t kMax = 16 << 20;
  return bytes > 0 ? std::clamp(bytes, kMin, kMax) : fallback;
}

int AffinityCount() {
  // The kernel returns an error if the set is shorter than its own.
  for (size_t bits = 1024; bits <= (1U << 20); bits *= 2) {
    cpu_set_t* set = CPU_ALLOC(bits);
    if (set == nullptr) break;
    const size_t set_bytes = CPU_ALLOC_SIZE(bits);
    const int error = sched_getaffinity(0, set_bytes, set);
    const int count = error == 0 ? CPU_COUNT_S(set_bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
}

// Returns the first line of a file, without blanks around it.
std::optional<std::string> FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return std::string(absl::StripAsciiWhitespace(line));
}

std::optional<int64_t> ReadInt(const std::string& path) {
  const std::optional<std::string> line = FirstLine(path);
  int64_t number = 0;
  if (!line || !absl::SimpleAtoi(*line, &number)) return std::nullopt;
  return number;
}

// Calls `visit` with the folder of every cgroup that limits this process
// through `controller`: its own first, then each one above, in the hierarchies
// of both versions. Inside a container the path names folders that only the
// host sees. They are missing here, but the walk reaches the container's root
// anyway.
void VisitCgroups(const std::string& root, const std::string& self,
                  absl::string_view controller,
                  const std::function<void(const std::string&)>& visit) {
  std::ifstream file(self);
  for (std::string line; std::getline(file, line);) {
    // A line is hierarchy:controllers:path. Version 2 has no controllers.
    const std::vector<std::string> fields =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    std::vector<std::string> mounts;
    if (fields[1].empty()) {
      mounts = {root, absl::StrCat(root, "/unified")};
    } else {
      const std::vector<absl::string_view> names =
          absl::StrSplit(fields[1], ',');
      if (std::find(names.begin(), names.end(), controller) == names.end()) {
        continue;
      }
      mounts = {absl::StrCat(root, "/", controller)};
      if (names.size() > 1) {
        mounts.push_back(absl::StrCat(root, "/", fields[1]));
      }
    }
    // A path with ".." leads out of our cgroup namespace, and a path without a
    // slash leads nowhere. Then only the root is visited.
    absl::string_view path = fields[2];
    if (!absl::StartsWith(path, "/") || absl::StrContains(path, "/..")) {
      path = "/";
    }
    for (const std::string& mount : mounts) {
      absl::string_view level = absl::StripSuffix(path, "/");
      while (!level.empty()) {
        visit(absl::StrCat(mount, level));
        level = level.substr(0, level.rfind('/'));
      }
      visit(mount);
    }
  }
}

}  // namespace

MachineInfo MachineInfo::Detect() {
  return {.isa = FastestIsa(), .l2_bytes = L2Bytes(MachineInfo().l2_bytes)};
}

int AvailableThreads() {
  int threads = AffinityCount();
  if (const auto quota = CgroupCpuQuota(kCgroupRoot, kCgroupSelf)) {
    threads = static_cast<int>(std::min<double>(threads, std::floor(*quota)));
  }
  return std::max(threads, 1);
}

int64_t AvailableMemoryBytes() {
  const int64_t physical_bytes =
      int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return std::min(physical_bytes,
                  CgroupMemoryLimitBytes(kCgroupRoot, kCgroupSelf)
                      .value_or(physical_bytes));
}

std::optional<double> CgroupCpuQuota(std::string_view root,
                                     std::string_view self) {
  std::optional<double> tightest;
  VisitCgroups(
      std::string(root), std::string(self), "cpu",
      [&](const std::string& folder) {
        int64_t quota_us = 0;
        int64_t period_us = 0;
        if (const auto line = FirstLine(folder + "/cpu.max")) {
          const std::vector<absl::string_view> words =
              absl::StrSplit(*line, ' ');
          // "max 100000" means that there is no limit.
          if (words.size() != 2 || !absl::SimpleAtoi(words[0], &quota_us) ||
              !absl::SimpleAtoi(words[1], &period_us)) {
            return;
          }
        } else {
          quota_us = ReadInt(folder + "/cpu.cfs_quota_us").value_or(-1);
          period_us = ReadInt(folder + "/cpu.cfs_period_us").value_or(-1);
        }
        if (quota_us <= 0 || period_us <= 0) return;
        const double quota =
            static_cast<double>(quota_us) / static_cast<double>(period_us);
        tightest = std::min(tightest.value_or(quota), quota);
      });
  return tightest;
}

std::optional<int64_t> CgroupMemoryLimitBytes(std::string_view root,
                                              std::string_view self) {
  // Version 1 reports the largest page-aligned int64 if there is no limit.
  constexpr int64_t kUnlimited = int64_t{1} << 62;
  std::optional<int64_t> tightest;
  VisitCgroups(std::string(root), std::string(self), "memory",
               [&](const std::string& folder) {
                 std::optional<int64_t> limit = ReadInt(folder + "/memory.max");
                 if (!limit) limit = ReadInt(folder + "/memory.limit_in_bytes");
                 if (!limit || *limit < 0 || *limit >= kUnlimited) return;
                 tightest = std::min(tightest.value_or(*limit), *limit);
               });
  return tightest;
}

}  // namespace attnd
