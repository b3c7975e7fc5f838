#include "core/kernel_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "core/checked_math.h"
#include "core/kernels/geometry.h"
#include "core/workspace.h"

namespace attnd {
namespace {

constexpr int64_t kWordBytes = 4;
constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

// Up to here a row's scores are made by dot products with the keys as they lie:
// packing them would cost more than it saves.
constexpr int64_t kMaxDirectRows = 12;

// The most rows in a tile: enough to read K^T and V seldom, few enough that
// their scores stay in the second-level cache.
constexpr int64_t kTileRows = 96;

// A tile wants its scores and one pass of K^T or V in the second-level cache,
// with room for the other's lines: what is over half of it does not pay.
int64_t ChooseTileKv(const AttentionParams& params, int64_t l2_bytes) {
  int64_t keys = params.block_size;
  if (keys == 0) {
    const int64_t row_bytes =
        kWordBytes * (params.head_dim + params.v_head_dim);
    keys = std::min<int64_t>(l2_bytes / 4 / row_bytes, 256);
  }
  // Whole sums, and a power of two of them, so that it divides a split.
  int64_t tile = kKeysPerSum;
  while (tile < keys && tile < kMaxTileKeys) tile *= 2;
  while (tile > kKeysPerSum && tile / 2 >= params.kv_len) tile /= 2;
  return tile;
}

bool UsesBf16Dot(const AttentionParams& params, const MachineInfo& machine) {
  return machine.isa == Isa::kAvx512Bf16 &&
         params.precision != Precision::kF32 &&
         params.query_dtype == DataType::kBF16 &&
         params.key_dtype == DataType::kBF16 &&
         params.value_dtype == DataType::kBF16;
}

// In place, values must be f32 rows of whole vectors.
bool ReadsValuesInPlace(const AttentionParams& params,
                        const Geometry& geometry) {
  return params.value_dtype == DataType::kF32 &&
         params.precision != Precision::kBF16 &&
         params.v_head_dim % geometry.lanes == 0;
}

int64_t Saturated(const std::optional<int64_t>& bytes) {
  return bytes && *bytes < kMaxBytes - Workspace::kAlignment
             ? RoundUp(*bytes, Workspace::kAlignment)
             : kMaxBytes;
}

int64_t PackTasksPerHead(const EntryPlan& entry) {
  return CeilDiv(entry.packed_keys, KernelPlan::kKeysPerPackTask);
}

}  // namespace

EntryPlan PlanEntry(const AttentionParams& params, int64_t q_len,
                    int64_t kv_len, const MachineInfo& machine) {
  const Geometry geometry = GeometryOf(machine.isa);
  EntryPlan entry;
  const int64_t rows = params.HeadsPerGroup() * q_len;
  if (rows == 0) return entry;
  entry.kv_len = kv_len;
  entry.direct = rows <= kMaxDirectRows;
  // Tiles of nearly equal numbers of rows, in whole microkernels.
  entry.q_tiles = CeilDiv(rows, kTileRows);
  entry.tile_q = CeilDiv(rows, entry.q_tiles);
  if (entry.q_tiles > 1) entry.tile_q = RoundUp(entry.tile_q, geometry.rows);
  entry.q_tiles = CeilDiv(rows, entry.tile_q);
  // One tile would be one task, however many keys it has.
  if (entry.q_tiles == 1) {
    entry.splits =
        std::max<int64_t>(1, CeilDiv(kv_len, KernelPlan::kKeysPerSplit));
  }
  if (!entry.direct) entry.packed_keys = RoundUp(kv_len, kKeysPerSum);
  return entry;
}

KernelPlan::Start KernelPlan::Advance(Start start, const EntryPlan& entry,
                                      int64_t kv_heads) {
  const int64_t tiles = kv_heads * entry.q_tiles;
  start.pack_task += kv_heads * PackTasksPerHead(entry);
  start.tile_task += tiles * entry.splits;
  start.packed_key += kv_heads * entry.packed_keys;
  if (entry.splits > 1) {
    start.merge_task += tiles;
    start.partial += tiles * entry.splits;
  }
  return start;
}

KernelPlan::Start KernelPlan::StartOf(int64_t place) const {
  if (!uniform_) return starts_[static_cast<size_t>(place)];
  const Start one = Advance({}, entries_[0], kv_heads_);
  return {.pack_task = place * one.pack_task,
          .tile_task = place * one.tile_task,
          .merge_task = place * one.merge_task,
          .packed_key = place * one.packed_key,
          .partial = place * one.partial};
}

int64_t KernelPlan::EntryOf(int64_t task, int64_t Start::*counter) const {
  if (uniform_) return task / (Advance({}, entries_[0], kv_heads_).*counter);
  // The last place that starts at or before the task; those before it that
  // start there too have no task of this kind.
  const auto after = std::upper_bound(
      starts_.begin(), starts_.end(), task,
      [counter](int64_t t, const Start& start) { return t < start.*counter; });
  return after - starts_.begin() - 1;
}

PackTask KernelPlan::Pack(int64_t task) const {
  const int64_t place = EntryOf(task, &Start::pack_task);
  const int64_t entry = uniform_ ? place : order_[static_cast<size_t>(place)];
  const EntryPlan& plan = Entry(entry);
  task -= StartOf(place).pack_task;
  const int64_t per_head = PackTasksPerHead(plan);
  const int64_t first = task % per_head * kKeysPerPackTask;
  return {.entry = entry,
          .kv_head = task / per_head,
          .first = first,
          .last = std::min(first + kKeysPerPackTask, plan.kv_len)};
}

TileTask KernelPlan::Locate(int64_t task, int64_t Start::*counter,
                            bool splits) const {
  const int64_t place = EntryOf(task, counter);
  const int64_t entry = uniform_ ? place : order_[static_cast<size_t>(place)];
  const EntryPlan& plan = Entry(entry);
  task -= StartOf(place).*counter;
  TileTask located{.entry = entry, .kv_head = 0, .tile = 0, .split = 0};
  if (splits) {
    located.split = task % plan.splits;
    task /= plan.splits;
  }
  located.kv_head = task / plan.q_tiles;
  // Later rows see more keys where a rule is causal.
  located.tile = plan.q_tiles - 1 - task % plan.q_tiles;
  return located;
}

TileTask KernelPlan::Tile(int64_t task) const {
  return Locate(task, &Start::tile_task, true);
}

TileTask KernelPlan::Merge(int64_t task) const {
  return Locate(task, &Start::merge_task, false);
}

int64_t KernelPlan::FirstKey(int64_t entry, int64_t kv_head) const {
  const int64_t place = uniform_ ? entry : places_[static_cast<size_t>(entry)];
  return StartOf(place).packed_key + kv_head * Entry(entry).packed_keys;
}

int64_t KernelPlan::PartialIndex(const TileTask& task) const {
  const int64_t place =
      uniform_ ? task.entry : places_[static_cast<size_t>(task.entry)];
  const EntryPlan& plan = Entry(task.entry);
  return StartOf(place).partial +
         (task.kv_head * plan.q_tiles + task.tile) * plan.splits + task.split;
}

int64_t KernelPlan::Slots(int64_t threads) const {
  return std::max<int64_t>(1, std::min(threads, tile_tasks));
}

int64_t KernelPlan::WorkspaceBytes(int64_t threads) const {
  const auto slot_total = CheckedProduct({Slots(threads), slot_bytes});
  const auto total = slot_total
                         ? CheckedSum({packed_keys_bytes, packed_values_bytes,
                                       partial_bytes, *slot_total})
                         : std::nullopt;
  return total.value_or(kMaxBytes);
}

KernelPlan MakeKernelPlan(const AttentionProblem& problem,
                          const MachineInfo& machine) {
  const AttentionParams& params = problem.params();
  const Mask& mask = problem.mask();
  const Geometry geometry = GeometryOf(machine.isa);
  KernelPlan plan;
  plan.panel_keys = geometry.panel_keys();
  plan.tile_kv = ChooseTileKv(params, machine.l2_bytes);
  plan.kv_heads_ = params.num_kv_heads;
  plan.uniform_ = mask.uniform();

  KernelPlan::Start total;
  bool any_direct = false;
  bool any_tiled = false;
  const auto add = [&](const EntryPlan& entry) {
    plan.tile_q = std::max(plan.tile_q, entry.tile_q);
    (entry.direct ? any_direct : any_tiled) |= entry.q_tiles > 0;
  };
  // Counts that overflow do so with the bytes of the panels, below.
  bool overflow = false;
  if (plan.uniform_) {
    const EntryPlan entry =
        PlanEntry(params, params.q_len, params.kv_len, machine);
    plan.entries_ = {entry};
    add(entry);
    overflow =
        !CheckedProduct({params.batch, params.num_kv_heads,
                         std::max<int64_t>(1, entry.packed_keys),
                         std::max<int64_t>(1, entry.q_tiles), entry.splits});
    if (!overflow) total = plan.StartOf(params.batch);
  } else {
    const auto count = static_cast<size_t>(params.batch);
    plan.entries_.reserve(count);
    std::vector<int64_t> work;
    work.reserve(count);
    for (int64_t b = 0; b < params.batch; ++b) {
      const BatchEntry entry = mask.Entry(b);
      plan.entries_.push_back(
          PlanEntry(params, entry.q_len, entry.kv_len, machine));
      add(plan.entries_.back());
      work.push_back(entry.VisiblePairs());
    }
    plan.order_.resize(count);
    std::iota(plan.order_.begin(), plan.order_.end(), 0);
    std::stable_sort(
        plan.order_.begin(), plan.order_.end(), [&](int32_t a, int32_t b) {
          return work[static_cast<size_t>(a)] > work[static_cast<size_t>(b)];
        });
    plan.places_.resize(count);
    plan.starts_.reserve(count);
    for (size_t place = 0; place < count; ++place) {
      const auto entry = static_cast<size_t>(plan.order_[place]);
      plan.places_[entry] = static_cast<int32_t>(place);
      plan.starts_.push_back(total);
      total =
          KernelPlan::Advance(total, plan.entries_[entry], params.num_kv_heads);
    }
  }
  plan.tile_q = std::max<int64_t>(plan.tile_q, 1);
  plan.pack_tasks = total.pack_task;
  plan.tile_tasks = total.tile_task;
  plan.merge_tasks = total.merge_task;

  plan.bf16_products = params.precision == Precision::kBF16;
  plan.isa = machine.isa == Isa::kAvx512Bf16 ? Isa::kAvx512 : machine.isa;
  if (any_tiled && UsesBf16Dot(params, machine)) {
    plan.isa = Isa::kAvx512Bf16;
    plan.bf16_products = true;
  }
  plan.variant = any_tiled ? (any_direct ? "tiled+direct" : "tiled") : "direct";
  plan.converts_values = any_direct && !ReadsValuesInPlace(params, geometry);

  const SlotLayout layout =
      SlotLayout::Of(geometry, {.tile_q = plan.tile_q,
                                .tile_kv = plan.tile_kv,
                                .head_dim = params.head_dim,
                                .v_head_dim = params.v_head_dim,
                                .converts_values = plan.converts_values});
  plan.slot_bytes = kWordBytes * layout.total;
  const int64_t per_word = plan.isa == Isa::kAvx512Bf16 ? 2 : 1;
  const int64_t keys = overflow ? kMaxBytes : total.packed_key;
  plan.packed_keys_bytes = Saturated(
      CheckedProduct({kWordBytes, keys, CeilDiv(params.head_dim, per_word)}));
  plan.packed_values_bytes = Saturated(
      CheckedProduct({kWordBytes, keys / per_word, layout.output_stride}));
  plan.partial_bytes = Saturated(CheckedProduct(
      {kWordBytes, total.partial,
       PartialLayout::Of(plan.tile_q, params.v_head_dim).total}));
  return plan;
}

}  // namespace attnd
