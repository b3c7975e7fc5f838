#include "core/kernel_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "base/checked_math.h"
#include "core/geometry.h"
#include "tests/support/attention_case.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::testing::ElementsAre;

constexpr MachineInfo kWide = {.isa = Isa::kAvx512, .l2_bytes = 1 << 20};

AttentionProblem Problem(int64_t batch, int64_t heads, int64_t group,
                         int64_t q_len, int64_t kv_len, int64_t head_dim,
                         const AttentionOptions& options = {}) {
  const TensorSpec kv{.shape = {batch, heads, kv_len, head_dim}};
  return AttentionProblem::Create(
             {.shape = {batch, heads * group, q_len, head_dim}}, kv, kv,
             options)
      .value();
}

struct Row {
  AttentionProblem problem;
  const char* variant;
  int64_t tile_q;
  int64_t tile_kv;
  int64_t tile_tasks;
  int64_t merge_tasks;
};

TEST(KernelPlanTest, ChoosesTheTilesOfTheTable) {
  const std::vector<Row> table = {
      {Problem(1, 1, 1, 4096, 4096, 128), "tiled", 96, 256, 43, 0},
      {Problem(1, 1, 1, 4096, 4096, 64), "tiled", 96, 512, 43, 0},
      // A plan with few rows reads keys in place, in splits of 4096 keys.
      {Problem(2, 8, 4, 1, 32768, 128), "direct", 4, 256, 128, 16},
      {Problem(1, 2, 1, 48, 4096, 64), "direct", 48, 512, 2, 0},
      {Problem(1, 2, 1, 49, 4096, 64), "tiled", 49, 512, 2, 0},
      // There is one tile of rows, so workers can share it only by splitting
      // its keys.
      {Problem(1, 1, 1, 96, 10000, 64), "tiled", 96, 512, 3, 1},
      // There are two tiles, which have nearly the same number of rows.
      {Problem(1, 32, 1, 128, 128, 64), "tiled", 66, 512, 64, 0},
      {Problem(1, 1, 1, 4096, 4096, 1024), "tiled", 96, 128, 43, 0},
      {Problem(1, 1, 1, 5, 0, 64), "direct", 5, 512, 1, 0},
      {Problem(1, 1, 1, 0, 5, 64), "direct", 1, 512, 0, 0},
      {Problem(0, 1, 1, 5, 5, 64), "direct", 1, 512, 0, 0},
  };
  for (const Row& row : table) {
    const KernelPlan plan = MakeKernelPlan(row.problem, kWide);
    const AttentionParams& p = row.problem.params();
    SCOPED_TRACE(::testing::Message()
                 << "q_len " << p.q_len << " kv_len " << p.kv_len
                 << " head_dim " << p.head_dim);
    EXPECT_EQ(plan.variant, row.variant);
    EXPECT_EQ(plan.tile_q, row.tile_q);
    EXPECT_EQ(plan.tile_kv, row.tile_kv);
    EXPECT_EQ(plan.tile_tasks, row.tile_tasks);
    EXPECT_EQ(plan.merge_tasks, row.merge_tasks);
  }
}

TEST(KernelPlanTest, TilesDependOnNeitherBatchNorHeads) {
  const KernelPlan one = MakeKernelPlan(Problem(1, 1, 2, 700, 900, 64), kWide);
  const KernelPlan many =
      MakeKernelPlan(Problem(16, 32, 2, 700, 900, 64), kWide);
  EXPECT_EQ(one.Entry(0), many.Entry(15));
  EXPECT_EQ(one.tile_kv, many.tile_kv);
  EXPECT_EQ(one.variant, many.variant);
}

// Padding and other entries of the batch must not change the plan of an entry.
TEST(KernelPlanTest, AnEntryIsPlannedByItsOwnLengths) {
  for (const Isa isa : kIsas) {
    MachineInfo machine = kWide;
    machine.isa = isa;
    for (const int64_t rows : {1, 8, 50, 100, 200, 600, 1100}) {
      for (const int64_t keys : {300, 5000}) {
        SCOPED_TRACE(::testing::Message() << IsaName(isa) << ", " << rows
                                          << " rows, " << keys << " keys");
        const KernelPlan alone =
            MakeKernelPlan(Problem(1, 2, 1, rows, keys, 64), machine);
        const KernelPlan padded = MakeKernelPlan(
            Problem(
                2, 2, 1, 2048, 9000, 64,
                {.query_lengths = {rows, 2048}, .key_lengths = {keys, 9000}}),
            machine);
        EntryPlan entry = padded.Entry(0);
        EXPECT_EQ(std::exchange(entry.padding_rows, 0), 2 * (2048 - rows));
        EXPECT_EQ(alone.Entry(0), entry);
        EXPECT_FALSE(IsDirect(padded.Entry(1).kind));
        EXPECT_EQ(padded.variant.ends_with("+direct"),
                  IsDirect(alone.Entry(0).kind));
      }
    }
  }
}

// The longest entry of a batch must not add work to the others.
TEST(KernelPlanTest, RowsOfPaddingAreInNoTile) {
  const KernelPlan plan = MakeKernelPlan(
      Problem(3, 8, 2, 4096, 131072, 128, {.query_lengths = {4096, 1, 0}}),
      kWide);
  const int64_t tiles = CeilDiv(2 * 4096, 96);
  EXPECT_EQ(plan.tile_tasks, 8 * (tiles + 32));
  EXPECT_EQ(plan.merge_tasks, 8);
  // The tasks write each padding row once. Each task writes several rows.
  std::vector<int64_t> next(3);
  EXPECT_GT(plan.padding_tasks, 16 * 2);
  for (int64_t task = 0; task < plan.padding_tasks; ++task) {
    const PaddingTask rows = plan.Padding(task);
    int64_t& begin = next[static_cast<size_t>(rows.entry)];
    EXPECT_EQ(rows.first, begin);
    EXPECT_GT(rows.last, rows.first);
    EXPECT_LE(rows.last, rows.first + 512);
    begin = rows.last;
  }
  EXPECT_THAT(next, ElementsAre(0, 16 * 4095, 16 * 4096));
}

TEST(KernelPlanTest, EveryTaskIsOnePartOfOneEntry) {
  const TensorSpec spec{.shape = {3, 600, 16}};
  const AttentionProblem problem =
      AttentionProblem::Create(spec, spec, spec,
                               {.cu_seqlens_q = {0, 1, 1, 400, 600},
                                .cu_seqlens_k = {0, 300, 350, 600, 600}})
          .value();
  const KernelPlan plan = MakeKernelPlan(problem, kWide);
  std::set<std::tuple<int64_t, int64_t, int64_t, int64_t>> tiles;
  for (int64_t task = 0; task < plan.tile_tasks; ++task) {
    const TileTask tile = plan.Tile(task);
    EXPECT_LT(tile.kv_head, 3);
    EXPECT_LT(tile.tile, plan.Entry(tile.entry).q_tiles);
    EXPECT_TRUE(
        tiles.insert({tile.entry, tile.kv_head, tile.tile, tile.split}).second);
  }
  // The entries have 1 row, 0 rows, 399 rows in 5 tiles, and 200 rows in 3
  // tiles. The last entry sees no keys.
  EXPECT_EQ(plan.tile_tasks, 3 * (1 + 0 + 5 + 3));
  // The entry with the most work comes first.
  EXPECT_EQ(plan.Tile(0).entry, 2);
  int64_t packed = 0;
  for (int64_t entry = 0; entry < 4; ++entry) {
    for (int64_t piece = 0; piece < plan.PackTasks(entry); ++piece) {
      const PackTask part = plan.Pack(entry, 2, piece);
      EXPECT_LT(part.first, part.last);
      packed += part.last - part.first;
    }
  }
  EXPECT_EQ(packed, 250);
}

TEST(KernelPlanTest, BlockSizeIsAHintInWholeSums) {
  for (const auto& [hint, keys] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 128},
           {128, 128},
           {129, 256},
           {300, 512},
           {1 << 30, 512},
           {std::numeric_limits<int64_t>::max(), 512}}) {
    EXPECT_EQ(MakeKernelPlan(
                  Problem(1, 1, 1, 512, 4096, 64, {.block_size = hint}), kWide)
                  .tile_kv,
              keys)
        << hint;
  }
}

TEST(KernelPlanTest, NativeBf16IsForWhatIsBf16OrMayBeRounded) {
  MachineInfo machine = kWide;
  const auto isa_of = [&](DataType type, Precision precision) {
    const TensorSpec spec{.dtype = type, .shape = {512, 64}};
    return MakeKernelPlan(AttentionProblem::Create(spec, spec, spec,
                                                   {.precision = precision})
                              .value(),
                          machine)
        .isa;
  };
  for (const Isa native : {Isa::kAvx512Bf16, Isa::kAmxBf16, Isa::kNeonBf16}) {
    machine.isa = native;
    const Isa of_f32 = native == Isa::kNeonBf16 ? Isa::kNeon : Isa::kAvx512;
    EXPECT_EQ(isa_of(DataType::kBF16, Precision::kAuto), native);
    EXPECT_EQ(isa_of(DataType::kBF16, Precision::kBF16), native);
    EXPECT_EQ(isa_of(DataType::kBF16, Precision::kF32), of_f32);
    EXPECT_EQ(isa_of(DataType::kF32, Precision::kF32), of_f32);
    EXPECT_EQ(isa_of(DataType::kF32, Precision::kBF16), native);
    EXPECT_EQ(isa_of(DataType::kF16, Precision::kBF16), native);
  }
}

// If AMX is available, three bf16 parts replace each f32 number, unless the
// caller requests f32 products.
TEST(KernelPlanTest, AmxSplitsWhatIsNotBf16) {
  MachineInfo machine = kWide;
  const auto plan_of = [&](DataType type, Precision precision) {
    const TensorSpec spec{.dtype = type, .shape = {512, 64}};
    return MakeKernelPlan(
        AttentionProblem::Create(spec, spec, spec, {.precision = precision})
            .value(),
        machine);
  };
  const KernelPlan whole = plan_of(DataType::kF32, Precision::kAuto);
  EXPECT_EQ(whole.isa, Isa::kAvx512);
  EXPECT_EQ(whole.tiled_kind, TileKind::kPanel);
  machine.isa = Isa::kAvx512Bf16;
  EXPECT_EQ(plan_of(DataType::kF32, Precision::kAuto).isa, Isa::kAvx512);
  machine.isa = Isa::kAmxBf16;
  for (const DataType type : {DataType::kF32, DataType::kF16}) {
    const KernelPlan split = plan_of(type, Precision::kAuto);
    EXPECT_EQ(split.isa, Isa::kAmxBf16);
    EXPECT_EQ(split.tiled_kind, TileKind::kAmxBf16x3);
    EXPECT_EQ(split.variant, "tiled_bf16x3");
    // Two bytes for each of three terms, instead of four.
    EXPECT_EQ(split.packed_keys_bytes, whole.packed_keys_bytes / 2 * 3);
    EXPECT_EQ(split.packed_head_bytes - 64,
              (whole.packed_head_bytes - 64) / 2 * 3);
    EXPECT_EQ(plan_of(type, Precision::kF32).tiled_kind, TileKind::kPanel);
  }
  EXPECT_EQ(plan_of(DataType::kBF16, Precision::kAuto).tiled_kind,
            TileKind::kAmxBf16);
}

// Larger tiles read keys and values less often, but there must be enough tiles
// for the workers.
TEST(KernelPlanTest, AmxTilesGrowWithTheRows) {
  MachineInfo machine = kWide;
  machine.isa = Isa::kAmxBf16;
  for (const auto& [rows, tile_q] : std::vector<std::pair<int64_t, int64_t>>{
           {97, 97}, {128, 128}, {512, 128}, {1024, 256}, {4096, 256}}) {
    EXPECT_EQ(MakeKernelPlan(Problem(1, 1, 1, rows, 4096, 64), machine).tile_q,
              tile_q);
  }
}

TEST(KernelPlanTest, WorkspaceGrowsWithThreadsUpToTheTiles) {
  const KernelPlan plan = MakeKernelPlan(Problem(1, 1, 1, 200, 64, 64), kWide);
  ASSERT_EQ(plan.tile_tasks, 3);
  const int64_t one = plan.WorkspaceBytes(1);
  EXPECT_EQ(plan.WorkspaceBytes(2), one + plan.slot_bytes);
  EXPECT_EQ(plan.WorkspaceBytes(3), plan.WorkspaceBytes(64));
}

// The partial results of an entry take memory for its own rows and not for
// those of the largest tile, for example when many single queries share a batch
// with a long prompt.
TEST(KernelPlanTest, PartialResultsHaveTheRowsOfTheirEntry) {
  const KernelPlan plan = MakeKernelPlan(
      Problem(3, 2, 4, 500, 9000, 64, {.query_lengths = {1, 500, 20}}), kWide);
  ASSERT_EQ(plan.tile_q, 96);
  ASSERT_EQ(plan.merge_tasks, 2 * 2);
  const int64_t few = PartialLayout::Of(4, 64).total;
  const int64_t more = PartialLayout::Of(80, 64).total;
  EXPECT_EQ(plan.partial_bytes, 4 * 2 * 3 * (few + more));
  // The partial results lie one behind the other.
  std::set<int64_t> ends;
  for (int64_t task = 0; task < plan.tile_tasks; ++task) {
    const TileTask tile = plan.Tile(task);
    if (plan.Entry(tile.entry).splits == 1) continue;
    ends.insert(plan.PartialAt(tile) + plan.PartialOf(tile.entry).total);
  }
  EXPECT_EQ(ends.size(), 2 * 3 * 2);
  EXPECT_EQ(4 * *ends.rbegin(), plan.partial_bytes);
}

// One head is packed for each tile in progress, so their memory does not grow
// with the number of heads.
TEST(KernelPlanTest, PackedHeadsGrowWithThreadsUpToTheHeads) {
  const KernelPlan plan = MakeKernelPlan(Problem(2, 3, 1, 400, 64, 64), kWide);
  ASSERT_EQ(plan.tile_tasks, 2 * 3 * 5);
  EXPECT_EQ(plan.PackedHeads(1), 1);
  EXPECT_EQ(plan.PackedHeads(2), 2);
  EXPECT_EQ(plan.PackedHeads(4), 4);
  EXPECT_EQ(plan.PackedHeads(64), 6);
  EXPECT_EQ(plan.WorkspaceBytes(2),
            plan.WorkspaceBytes(1) + plan.slot_bytes + plan.packed_head_bytes);
  EXPECT_EQ(MakeKernelPlan(Problem(2, 3, 1, 1, 64, 64), kWide).PackedHeads(2),
            0);
}

TEST(KernelPlanTest, BytesFitWhereverTensorsDo) {
  for (const int64_t batch : {int64_t{1} << 45, int64_t{1} << 46}) {
    const KernelPlan plan =
        MakeKernelPlan(Problem(batch, 1, 1, 49, 1, 64), kWide);
    EXPECT_GT(plan.WorkspaceBytes(2), batch);
    EXPECT_LT(plan.WorkspaceBytes(2), 64 * batch);
  }
}

TEST(KernelPlanTest, EveryTileFitsTheKernelsFixedArrays) {
  for (const Isa isa : kIsas) {
    MachineInfo machine = kWide;
    machine.isa = isa;
    for (const int64_t q_len : {1, 95, 96, 97, 5000}) {
      const KernelPlan plan =
          MakeKernelPlan(Problem(1, 1, 3, q_len, 777, 100), machine);
      EXPECT_LE(plan.tile_q, kMaxTileRows);
      EXPECT_EQ(plan.tile_kv % kKeysPerSum, 0);
      EXPECT_EQ(KernelPlan::kKeysPerSplit % plan.tile_kv, 0);
      EXPECT_EQ(kKeysPerSum % GeometryOf(plan.isa).panel_keys(), 0);
      EXPECT_EQ(plan.slot_bytes % 64, 0);
      EXPECT_EQ(plan.packed_keys_bytes % 64, 0);
      EXPECT_EQ(plan.packed_head_bytes % 64, 0);
    }
  }
}

// A search for the largest problem that fits relies on this.
TEST(KernelPlanTest, TheWorkspaceShrinksOnlyWhereItIsAllowedTo) {
  int shrunk = 0;
  for (const Isa isa : kIsas) {
    for (const DataType type :
         {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      for (const Precision precision :
           {Precision::kAuto, Precision::kF32, Precision::kBF16}) {
        MachineInfo machine = kWide;
        machine.isa = isa;
        const auto problem = [&](int64_t rows, int64_t keys, int64_t heads,
                                 int64_t batch) {
          const TensorSpec q{type, {batch, heads, rows, 40}};
          const TensorSpec kv{type, {batch, heads, keys, 40}};
          return AttentionProblem::Create(q, kv, kv, {.precision = precision})
              .value();
        };
        const std::vector<int64_t> breaks =
            RowsThatMayTakeLess(problem(1, 1, 1, 1).params(), machine);
        const std::set<int64_t> may_shrink(breaks.begin(), breaks.end());
        const auto bytes = [&](int64_t rows, int64_t keys, int64_t heads,
                               int64_t batch) {
          return MakeCostPlan(problem(rows, keys, heads, batch), machine)
              .WorkspaceBytes(5);
        };
        for (const int64_t keys : {1, 4096, 9000}) {
          int64_t last = 0;
          for (int64_t rows = 1; rows < 3000; ++rows) {
            const int64_t now = bytes(rows, keys, 2, 1);
            if (now < last) {
              ++shrunk;
              ASSERT_TRUE(may_shrink.contains(rows))
                  << IsaName(isa) << " rows " << rows << " keys " << keys;
            }
            last = now;
            if (rows % 50 != 1) continue;
            ASSERT_GE(bytes(rows, keys + 1, 2, 1), now);
            ASSERT_GE(bytes(rows, keys, 3, 1), now);
            ASSERT_GE(bytes(rows, keys, 2, 2), now);
          }
        }
      }
    }
  }
  EXPECT_GT(shrunk, 100);
}

TEST(KernelPlanTest, ACostPlanHasTheNumbersOfThePlan) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 300; ++i) {
    const testing::AttentionCase c(testing::RandomCase(rng, 300), rng());
    SCOPED_TRACE(c.ToString());
    for (const Isa isa : kIsas) {
      MachineInfo machine = kWide;
      machine.isa = isa;
      const KernelPlan plan = MakeKernelPlan(c.problem(), machine);
      const KernelPlan cost = MakeCostPlan(c.problem(), machine);
      EXPECT_EQ(cost.tile_tasks, plan.tile_tasks);
      EXPECT_EQ(cost.merge_tasks, plan.merge_tasks);
      EXPECT_EQ(cost.padding_tasks, plan.padding_tasks);
      EXPECT_EQ(cost.slot_bytes, plan.slot_bytes);
      EXPECT_EQ(cost.partial_bytes, plan.partial_bytes);
      EXPECT_EQ(cost.packed_head_bytes, plan.packed_head_bytes);
      for (const int64_t threads : {1, 3, 100}) {
        EXPECT_EQ(cost.PackedHeads(threads), plan.PackedHeads(threads));
        EXPECT_EQ(cost.WorkspaceBytes(threads), plan.WorkspaceBytes(threads));
      }
    }
  }
}

}  // namespace
}  // namespace attnd
