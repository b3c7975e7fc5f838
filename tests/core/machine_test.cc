#include "core/machine.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace attnd {
namespace {

TEST(MachineTest, EveryIsaHasANameOfItsOwn) {
  std::set<std::string_view> names;
  for (const Isa isa : kIsas) EXPECT_TRUE(names.insert(IsaName(isa)).second);
  EXPECT_EQ(IsaName(Isa::kNeon), "neon");
  EXPECT_EQ(IsaName(Isa::kAvx512), "avx512");
  EXPECT_EQ(IsaName(Isa::kAvx512Bf16), "avx512_bf16");
}

TEST(MachineTest, SupportedSetsGoFromWidestToNarrowest) {
  const std::vector<Isa> isas = SupportedIsas();
  ASSERT_FALSE(isas.empty());
#if defined(__aarch64__)
  EXPECT_EQ(isas.back(), Isa::kNeon);
#elif !defined(__AVX2__)
  EXPECT_EQ(isas.back(), Isa::kScalar);
#endif
  for (size_t i = 1; i < isas.size(); ++i) EXPECT_GT(isas[i - 1], isas[i]);
}

TEST(MachineTest, DetectsTheFastestSetAndAPlausibleCache) {
  const MachineInfo machine = MachineInfo::Detect();
  // This is the widest instruction set, unless its bf16 dot products are slower
  // than f32.
  const Isa widest = SupportedIsas().front();
  if (machine.isa != widest) {
    EXPECT_EQ(widest, Isa::kAvx512Bf16);
    EXPECT_EQ(machine.isa, Isa::kAvx512);
  }
  EXPECT_GE(machine.l2_bytes, 256 << 10);
  EXPECT_LE(machine.l2_bytes, 16 << 20);
}

TEST(MachineTest, ThreadsFollowTheAffinityMask) {
  cpu_set_t before;
  CPU_ZERO(&before);
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_GE(AvailableThreads(), 1);
  EXPECT_LE(AvailableThreads(), CPU_COUNT(&before));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &before)) {
      CPU_SET(cpu, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(AvailableThreads(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

TEST(MachineTest, MemoryIsPlausible) {
  EXPECT_GT(AvailableMemoryBytes(), int64_t{1} << 20);
}

// Makes files that stand for /sys/fs/cgroup and /proc/self/cgroup.
class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/cgroup_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = folder_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::optional<double> Quota() const {
    return CgroupCpuQuota((folder_ / "root").string(),
                          (folder_ / "self").string());
  }
  std::optional<int64_t> Limit() const {
    return CgroupMemoryLimitBytes((folder_ / "root").string(),
                                  (folder_ / "self").string());
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(CgroupTest, NoFilesMeanNoLimit) {
  EXPECT_EQ(Quota(), std::nullopt);
  EXPECT_EQ(Limit(), std::nullopt);
}

TEST_F(CgroupTest, Version2TakesTheTightestOfAllLevels) {
  Write("self", "0::/pod/app\n");
  Write("root/pod/app/cpu.max", "max 100000\n");
  Write("root/pod/cpu.max", "150000 100000\n");
  Write("root/cpu.max", "800000 100000\n");
  EXPECT_EQ(Quota(), 1.5);
  Write("root/pod/app/memory.max", "3000000\n");
  Write("root/pod/memory.max", "2000000\n");
  EXPECT_EQ(Limit(), 2000000);
  Write("root/pod/app/memory.max", "1000000\n");
  EXPECT_EQ(Limit(), 1000000);
}

TEST_F(CgroupTest, Version2SaysMaxForUnlimited) {
  Write("self", "0::/\n");
  Write("root/cpu.max", "max 100000\n");
  Write("root/memory.max", "max\n");
  EXPECT_EQ(Quota(), std::nullopt);
  EXPECT_EQ(Limit(), std::nullopt);
}

TEST_F(CgroupTest, Version1ReadsTheFolderOfEachController) {
  Write("self", "4:memory:/a/b\n3:cpu,cpuacct:/a\n0::/\n");
  Write("root/cpu,cpuacct/a/cpu.cfs_quota_us", "250000\n");
  Write("root/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  Write("root/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
  Write("root/memory/a/memory.limit_in_bytes", "4096000\n");
  EXPECT_EQ(Quota(), 2.5);
  EXPECT_EQ(Limit(), 4096000);
}

TEST_F(CgroupTest, Version1SaysMinusOneForUnlimited) {
  Write("self", "4:memory:/\n3:cpu:/\n");
  Write("root/cpu/cpu.cfs_quota_us", "-1\n");
  Write("root/cpu/cpu.cfs_period_us", "100000\n");
  Write("root/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Quota(), std::nullopt);
  EXPECT_EQ(Limit(), std::nullopt);
}

TEST_F(CgroupTest, OtherControllersDoNotCount) {
  Write("self", "3:cpuset:/a\n2:cpuacct:/a\n");
  Write("root/cpu/a/cpu.cfs_quota_us", "50000\n");
  Write("root/cpu/a/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Quota(), std::nullopt);
}

TEST_F(CgroupTest, APathThatOnlyTheHostSeesFallsBackToTheRoot) {
  Write("self", "0::/kubepods/pod7/container\n");
  Write("root/cpu.max", "50000 100000\n");
  Write("root/memory.max", "12345\n");
  EXPECT_EQ(Quota(), 0.5);
  EXPECT_EQ(Limit(), 12345);
}

TEST_F(CgroupTest, APathOutOfTheNamespaceFallsBackToTheRoot) {
  Write("self", "0::/../../outside\n");
  Write("outside/cpu.max", "10000 100000\n");
  Write("root/cpu.max", "200000 100000\n");
  EXPECT_EQ(Quota(), 2.0);
}

TEST_F(CgroupTest, APathWithoutASlashFallsBackToTheRoot) {
  Write("self", "0::app\n");
  Write("root/app/cpu.max", "10000 100000\n");
  Write("root/cpu.max", "200000 100000\n");
  EXPECT_EQ(Quota(), 2.0);
}

TEST_F(CgroupTest, HybridHostsKeepVersion2UnderUnified) {
  Write("self", "0::/app\n");
  Write("root/unified/app/cpu.max", "300000 100000\n");
  EXPECT_EQ(Quota(), 3.0);
}

TEST_F(CgroupTest, FilesThatMakeNoSenseAreNoLimit) {
  Write("self", "nonsense\n0::/a\n:\n");
  Write("root/a/cpu.max", "1 2 3\n");
  Write("root/cpu.max", "100000 0\n");
  Write("root/a/memory.max", "");
  Write("root/memory.max", "-5\n");
  EXPECT_EQ(Quota(), std::nullopt);
  EXPECT_EQ(Limit(), std::nullopt);
}

}  // namespace
}  // namespace attnd
