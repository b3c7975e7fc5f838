#include "core/kernel_plan.h"

#include <algorithm>
#include <cmath>

#include "base/checked_math.h"
#include "core/geometry.h"
#include "core/workspace.h"

namespace attnd {
namespace {

// The bytes of output that one padding task writes. That takes tens of
// microseconds.
constexpr int64_t kPaddingBytes = int64_t{1} << 18;

// Returns the number of keys in a tile. The scores of a tile and one pass of
// K^T or V should fit the second-level cache, with space for cache lines of the
// other. A tile that takes more than half of the cache does not pay.
int64_t ChooseTileKv(const AttentionParams& params, int64_t l2_bytes) {
  int64_t keys = params.block_size;
  if (keys == 0) {
    const int64_t row_bytes =
        kWordBytes * (params.head_dim + params.v_head_dim);
    keys = l2_bytes / 4 / row_bytes;
  }
  // A tile has a power of two of whole sums, so that it divides a split.
  int64_t tile = kKeysPerSum;
  while (tile < keys && tile < kMaxTileKeys) tile *= 2;
  return tile;
}

// The largest |scale| * head_dim for which native bf16 products may be used.
// They take the smallest numbers for 0, which makes no noticeable difference up
// to this limit (core/kernels/amx_bf16x3_tile-inl.h).
constexpr double kMaxScale = 0x1p40;

// Returns whether direct tiles can read values in place: only if they are f32
// and their rows are whole vectors.
bool ReadsValuesInPlace(const AttentionParams& params,
                        const Geometry& geometry) {
  return params.value_dtype == DataType::kF32 &&
         params.precision != Precision::kBF16 &&
         params.v_head_dim % geometry.lanes == 0;
}

}  // namespace

TileKind TiledKind(const AttentionParams& params, const MachineInfo& machine) {
  // Native bf16 is used for inputs that lose nothing by it, or if the call asks
  // for it. On AMX, an f32 product takes six bf16 products
  // (core/kernels/amx_bf16.h), which are still twice as fast as multiply-adds.
  const IsaTraits isa = TraitsOf(machine.isa);
  if (params.precision == Precision::kBF16) {
    return IsNativeBf16(isa.bf16_kind) ? isa.bf16_kind
                                       : TileKind::kPanelRounded;
  }
  const double scale = std::abs(double{params.score_scale}) *
                       static_cast<double>(params.head_dim);
  if (params.precision == Precision::kF32 || scale > kMaxScale) {
    return TileKind::kPanel;
  }
  const bool all_bf16 = params.query_dtype == DataType::kBF16 &&
                        params.key_dtype == DataType::kBF16 &&
                        params.value_dtype == DataType::kBF16;
  return all_bf16 ? isa.bf16_kind : isa.f32_kind;
}

int64_t MaxDirectRows(const AttentionParams& params,
                      const MachineInfo& machine) {
  // Keys that are read in place cannot be rounded.
  if (params.precision == Precision::kBF16 &&
      params.key_dtype != DataType::kBF16) {
    return -1;
  }
  return TraitsOf(TiledKind(params, machine)).max_direct_rows;
}

EntryPlan PlanEntry(const AttentionParams& params, const BatchEntry& of,
                    const MachineInfo& machine) {
  EntryPlan entry;
  entry.padding_rows =
      SaturatingProduct({params.num_q_heads, of.q_len - of.q_seeing});
  const int64_t rows = SaturatingProduct({params.HeadsPerGroup(), of.q_seeing});
  if (rows == 0) return entry;
  const int64_t kv_len = of.kv_len;
  entry.kv_len = kv_len;
  const TileKind tiled = TiledKind(params, machine);
  if (rows > MaxDirectRows(params, machine)) {
    entry.kind = tiled;
    entry.packed_keys = RoundUp(kv_len, kKeysPerSum);
  } else if (params.precision == Precision::kBF16) {
    entry.kind = TileKind::kDirectRounded;
  }
  // The rows are divided into tiles of nearly equal size, in whole blocks.
  const int64_t max_rows = rows < kManyRows ? TraitsOf(tiled).max_rows
                                            : TraitsOf(tiled).max_rows_of_many;
  entry.q_tiles = CeilDiv(rows, max_rows);
  entry.tile_q = CeilDiv(rows, entry.q_tiles);
  if (entry.q_tiles > 1) {
    entry.tile_q =
        RoundUp(entry.tile_q, RowsOfBlock(tiled, GeometryOf(machine.isa)));
  }
  entry.q_tiles = CeilDiv(rows, entry.tile_q);
  // Without splits, one tile would be one task, however many keys it has.
  if (entry.q_tiles == 1) {
    entry.splits =
        std::max<int64_t>(1, CeilDiv(kv_len, KernelPlan::kKeysPerSplit));
  }
  return entry;
}

KernelPlan::Table::Counts KernelPlan::CountsOf(const EntryPlan& entry,
                                               int64_t kv_heads) const {
  const int64_t tiles = SaturatingProduct({kv_heads, entry.q_tiles});
  const bool splits = entry.splits > 1;
  Table::Counts counts{};
  counts[kTile] = SaturatingProduct({tiles, entry.splits});
  counts[kMerge] = splits ? tiles : 0;
  counts[kPadding] = CeilDiv(entry.padding_rows, rows_per_padding_task_);
  counts[kPackedHead] = entry.packed_keys > 0 ? kv_heads : 0;
  counts[kPartialWord] =
      splits ? SaturatingProduct(
                   {counts[kTile],
                    PartialLayout::Of(entry.tile_q, v_head_dim_).total})
             : 0;
  return counts;
}

int64_t KernelPlan::PackTasks(int64_t entry) const {
  return CeilDiv(Entry(entry).packed_keys, kKeysPerPackTask);
}

PackTask KernelPlan::Pack(int64_t entry, int64_t kv_head, int64_t piece) const {
  const int64_t first = piece * kKeysPerPackTask;
  return {.entry = entry,
          .kv_head = kv_head,
          .first = first,
          .last = std::min(first + kKeysPerPackTask, Entry(entry).kv_len)};
}

TileTask KernelPlan::Tile(int64_t task) const {
  const auto [entry, index] = table_.Locate(kTile, task);
  const EntryPlan& plan = Entry(entry);
  const int64_t tile = index / plan.splits;
  // With a causal rule later rows see more keys, so the last tile comes first.
  return {.entry = entry,
          .kv_head = tile / plan.q_tiles,
          .tile = plan.q_tiles - 1 - tile % plan.q_tiles,
          .split = index % plan.splits};
}

TileTask KernelPlan::Merge(int64_t task) const {
  const auto [entry, index] = table_.Locate(kMerge, task);
  const EntryPlan& plan = Entry(entry);
  return {.entry = entry,
          .kv_head = index / plan.q_tiles,
          .tile = index % plan.q_tiles,
          .split = 0};
}

PaddingTask KernelPlan::Padding(int64_t task) const {
  const auto [entry, index] = table_.Locate(kPadding, task);
  const int64_t first = index * rows_per_padding_task_;
  return {.entry = entry,
          .first = first,
          .last = std::min(first + rows_per_padding_task_,
                           Entry(entry).padding_rows)};
}

int64_t KernelPlan::PackedHeads(int64_t threads) const {
  return std::min(table_.Total(kPackedHead), Slots(threads));
}

int64_t KernelPlan::PartialAt(const TileTask& task) const {
  const EntryPlan& plan = Entry(task.entry);
  const int64_t before =
      (task.kv_head * plan.q_tiles + task.tile) * plan.splits + task.split;
  return table_.First(kPartialWord, task.entry) +
         before * PartialOf(task.entry).total;
}

int64_t KernelPlan::Slots(int64_t threads) const {
  return std::max<int64_t>(1, std::min(threads, tile_tasks));
}

int64_t KernelPlan::WorkspaceBytes(int64_t threads) const {
  return SaturatingSum(
      {SaturatingProduct({PackedHeads(threads), packed_head_bytes}),
       partial_bytes, packing_bytes,
       SaturatingProduct({Slots(threads), slot_bytes})});
}

std::vector<int64_t> RowsThatMayTakeLess(const AttentionParams& params,
                                         const MachineInfo& machine) {
  const TileKind tiled = TiledKind(params, machine);
  const TileTraits& traits = TraitsOf(tiled);
  const int64_t block = RowsOfBlock(tiled, GeometryOf(machine.isa));
  // From here on, packed keys replace what direct tiles need.
  std::vector<int64_t> rows = {MaxDirectRows(params, machine) + 1};
  // One row more than fits a number of full tiles makes another tile, and all
  // tiles smaller. The second tile also ends the splits. With `max / block`
  // tiles or more, they have `max` rows again after they are rounded up to
  // whole blocks. Nothing else shrinks: until there is another tile, all tiles
  // grow with the rows.
  const auto add_tiles = [&](int64_t max, int64_t from, int64_t to) {
    for (int64_t tiles = 1; tiles <= max / block; ++tiles) {
      const int64_t first = tiles * max + 1;
      if (first >= from && first < to) rows.push_back(first);
    }
  };
  add_tiles(traits.max_rows, 0, kManyRows);
  if (traits.max_rows != traits.max_rows_of_many) rows.push_back(kManyRows);
  add_tiles(traits.max_rows_of_many, kManyRows, kMaxInt64);
  std::sort(rows.begin(), rows.end());
  return rows;
}

KernelPlan MakeKernelPlan(const AttentionProblem& problem,
                          const MachineInfo& machine) {
  return KernelPlan::Make(problem, machine, /*with_tasks=*/true);
}

KernelPlan MakeCostPlan(const AttentionProblem& problem,
                        const MachineInfo& machine) {
  return KernelPlan::Make(problem, machine, /*with_tasks=*/false);
}

KernelPlan KernelPlan::Make(const AttentionProblem& problem,
                            const MachineInfo& machine, bool with_tasks) {
  const AttentionParams& params = problem.params();
  const Visibility& visibility = problem.visibility();
  const Geometry geometry = GeometryOf(machine.isa);
  KernelPlan plan;
  plan.tile_kv = ChooseTileKv(params, machine.l2_bytes);
  plan.v_head_dim_ = params.v_head_dim;
  plan.rows_per_padding_task_ = std::max<int64_t>(
      1, kPaddingBytes / (params.v_head_dim * SizeOf(params.output_dtype)));
  plan.uniform_ = visibility.uniform();

  bool any_tiled = false;
  int64_t most_keys = 0;  // the most packed keys of any kv head
  const auto add = [&](const BatchEntry& of) {
    const EntryPlan entry = PlanEntry(params, of, machine);
    if (with_tasks) plan.entries_.push_back(entry);
    plan.tile_q = std::max(plan.tile_q, entry.tile_q);
    (IsDirect(entry.kind) ? plan.any_direct : any_tiled) |= entry.q_tiles > 0;
    most_keys = std::max(most_keys, entry.packed_keys);
    return plan.CountsOf(entry, params.num_kv_heads);
  };
  if (plan.uniform_) {
    const Table::Counts counts =
        add(params.batch > 0 ? visibility.Entry(0) : BatchEntry());
    plan.table_ = Table(params.batch, counts);
  } else if (!with_tasks) {
    Table::Counts totals{};
    for (int64_t b = 0; b < params.batch; ++b) {
      const Table::Counts counts = add(visibility.Entry(b));
      for (size_t kind = 0; kind < kKinds; ++kind) {
        totals[kind] = SaturatingSum({totals[kind], counts[kind]});
      }
    }
    plan.table_ = Table(1, totals);
  } else {
    std::vector<Table::Counts> counts;
    std::vector<int64_t> work;
    for (int64_t b = 0; b < params.batch; ++b) {
      const BatchEntry entry = visibility.Entry(b);
      counts.push_back(add(entry));
      work.push_back(entry.VisiblePairs());
    }
    plan.table_ = Table(counts, work);
  }
  plan.tile_q = std::max<int64_t>(plan.tile_q, 1);
  plan.tile_tasks = plan.table_.Total(kTile);
  plan.merge_tasks = plan.table_.Total(kMerge);
  plan.padding_tasks = plan.table_.Total(kPadding);

  if (any_tiled) plan.tiled_kind = TiledKind(params, machine);
  plan.isa = IsNativeBf16(plan.tiled_kind) ? machine.isa : F32Isa(machine.isa);
  const TileTraits& traits = TraitsOf(plan.tiled_kind);
  plan.variant = plan.any_direct ? traits.name_with_direct : traits.name;
  plan.converts_values =
      plan.any_direct && !ReadsValuesInPlace(params, geometry);

  plan.slot_layout =
      SlotLayout::Of(geometry, {.tile_q = plan.tile_q,
                                .tile_kv = plan.tile_kv,
                                .head_dim = params.head_dim,
                                .v_head_dim = params.v_head_dim,
                                .converts_values = plan.converts_values,
                                .kind = plan.tiled_kind});
  plan.slot_bytes = kWordBytes * plan.slot_layout.total;
  plan.packed_keys_bytes = AlignedBytes(SaturatingProduct(
      {kWordBytes, most_keys, RowWords(plan.tiled_kind, params.head_dim)}));
  const int64_t packed_values_bytes = AlignedBytes(
      SaturatingProduct({kWordBytes, most_keys / traits.elements_per_word,
                         plan.slot_layout.output_stride, traits.terms}));
  plan.packed_head_bytes = AlignedBytes(SaturatingSum(
      {Workspace::kAlignment, plan.packed_keys_bytes, packed_values_bytes}));
  plan.packing_bytes = any_tiled
                           ? AlignedBytes(SaturatingProduct(
                                 {static_cast<int64_t>(sizeof(HeadPacking)),
                                  params.batch, params.num_kv_heads}))
                           : 0;
  plan.partial_bytes = AlignedBytes(
      SaturatingProduct({kWordBytes, plan.table_.Total(kPartialWord)}));
  return plan;
}

}  // namespace attnd
