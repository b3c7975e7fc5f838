#include "core/kernel_plan.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/checked_math.h"
#include "core/geometry.h"
#include "core/workspace.h"

namespace attnd {
namespace {

// Of output that one padding task writes: tens of microseconds.
constexpr int64_t kPaddingBytes = int64_t{1} << 18;

// What tiled entries multiply on.
struct Products {
  Isa isa;
  int64_t parts;  // KernelPlan::parts
};

// The most rows in a tile: enough to read K^T and V seldom, few enough that
// their scores stay in the second-level cache and that there are tiles for many
// workers. AMX keeps the scores of one block of rows only, and multiplies
// faster than K^T and V come, but where they are short.
int64_t MaxRowsOfTile(const Products& products, int64_t rows) {
  if (products.isa != Isa::kAmxBf16) return 96;
  return rows < 1024 ? 128 : kMaxTileRows;
}

// A tile wants its scores and one pass of K^T or V in the second-level cache,
// with room for the other's lines: what is over half of it does not pay.
int64_t ChooseTileKv(const AttentionParams& params, int64_t l2_bytes) {
  int64_t keys = params.block_size;
  if (keys == 0) {
    const int64_t row_bytes =
        kWordBytes * (params.head_dim + params.v_head_dim);
    keys = l2_bytes / 4 / row_bytes;
  }
  // Whole sums, and a power of two of them, so that it divides a split.
  int64_t tile = kKeysPerSum;
  while (tile < keys && tile < kMaxTileKeys) tile *= 2;
  return tile;
}

// What scores are multiplied by, times head_dim, up to which nobody notices
// that native bf16 products take the tiniest numbers for 0
// (core/kernels/amx_tile-inl.h).
constexpr double kMostScale = 0x1p40;

// Native bf16 where it loses nothing of the inputs, or is asked for. On tiles
// the six products that make one of f32 (core/kernels/amx_bf16.h) are still
// twice as fast as multiply-adds.
Products ChooseProducts(const AttentionParams& params,
                        const MachineInfo& machine) {
  const Products native{machine.isa, 1};
  const Products f32{F32Isa(machine.isa), 1};
  if (params.precision == Precision::kBF16) return native;
  if (params.precision == Precision::kF32) return f32;
  const double scale = std::abs(double{params.score_scale}) *
                       static_cast<double>(params.head_dim);
  if (scale > kMostScale) return f32;
  if (params.query_dtype == DataType::kBF16 &&
      params.key_dtype == DataType::kBF16 &&
      params.value_dtype == DataType::kBF16) {
    return native;
  }
  if (machine.isa == Isa::kAmxBf16) return {machine.isa, kBf16PartsOfF32};
  return f32;
}

// In place, values must be f32 rows of whole vectors.
bool ReadsValuesInPlace(const AttentionParams& params,
                        const Geometry& geometry) {
  return params.value_dtype == DataType::kF32 &&
         params.precision != Precision::kBF16 &&
         params.v_head_dim % geometry.lanes == 0;
}

std::string_view VariantName(bool tiled, bool direct, int64_t parts) {
  if (!tiled) return "direct";
  if (parts == 1) return direct ? "tiled+direct" : "tiled";
  return direct ? "tiled_bf16x3+direct" : "tiled_bf16x3";
}

}  // namespace

int64_t PartsOf(const AttentionParams& params, const MachineInfo& machine) {
  return ChooseProducts(params, machine).parts;
}

int64_t MaxDirectRows(const AttentionParams& params,
                      const MachineInfo& machine) {
  // Keys as they lie cannot be rounded.
  if (params.precision == Precision::kBF16 &&
      params.key_dtype != DataType::kBF16) {
    return -1;
  }
  // Native bf16 products save more, but packing three parts costs more than
  // that.
  const Products products = ChooseProducts(params, machine);
  if (products.parts > 1) return 96;
  return products.isa == F32Isa(products.isa) ? 48 : 24;
}

EntryPlan PlanEntry(const AttentionParams& params, const BatchEntry& of,
                    const MachineInfo& machine) {
  const Products products = ChooseProducts(params, machine);
  const Geometry geometry = GeometryOf(products.isa);
  EntryPlan entry;
  entry.padding_rows = params.num_q_heads * (of.q_len - of.q_seeing);
  const int64_t rows = params.HeadsPerGroup() * of.q_seeing;
  if (rows == 0) return entry;
  const int64_t kv_len = of.kv_len;
  entry.kv_len = kv_len;
  entry.direct = rows <= MaxDirectRows(params, machine);
  // Tiles of nearly equal numbers of rows, in whole microkernels.
  const int64_t most_rows = MaxRowsOfTile(products, rows);
  entry.q_tiles = CeilDiv(rows, most_rows);
  entry.tile_q = CeilDiv(rows, entry.q_tiles);
  const int64_t block_rows =
      products.isa == Isa::kAmxBf16 ? kAmxBlock : geometry.rows;
  if (entry.q_tiles > 1) entry.tile_q = RoundUp(entry.tile_q, block_rows);
  entry.q_tiles = CeilDiv(rows, entry.tile_q);
  // One tile would be one task, however many keys it has.
  if (entry.q_tiles == 1) {
    entry.splits =
        std::max<int64_t>(1, CeilDiv(kv_len, KernelPlan::kKeysPerSplit));
  }
  if (!entry.direct) entry.packed_keys = RoundUp(kv_len, kKeysPerSum);
  return entry;
}

KernelPlan::Table::Counts KernelPlan::CountsOf(const EntryPlan& entry,
                                               int64_t kv_heads) const {
  const int64_t tiles = kv_heads * entry.q_tiles;
  const bool splits = entry.splits > 1;
  Table::Counts counts{};
  counts[kTile] = tiles * entry.splits;
  counts[kMerge] = splits ? tiles : 0;
  counts[kPadding] = CeilDiv(entry.padding_rows, rows_per_padding_task_);
  counts[kPackedHead] = entry.packed_keys > 0 ? kv_heads : 0;
  counts[kPartialWord] =
      splits ? tiles * entry.splits *
                   PartialLayout::Of(entry.tile_q, v_head_dim_).total
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
  // Later rows see more keys where a rule is causal.
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
  const auto slot_total = CheckedProduct({Slots(threads), slot_bytes});
  const auto packed = CheckedProduct({PackedHeads(threads), packed_head_bytes});
  const auto total =
      slot_total && packed
          ? CheckedSum({*packed, partial_bytes, packing_bytes, *slot_total})
          : std::nullopt;
  return total.value_or(kMaxBytes);
}

KernelPlan MakeKernelPlan(const AttentionProblem& problem,
                          const MachineInfo& machine) {
  const AttentionParams& params = problem.params();
  const Mask& mask = problem.mask();
  const Products products = ChooseProducts(params, machine);
  const Geometry geometry = GeometryOf(products.isa);
  KernelPlan plan;
  plan.tile_kv = ChooseTileKv(params, machine.l2_bytes);
  plan.v_head_dim_ = params.v_head_dim;
  plan.rows_per_padding_task_ = std::max<int64_t>(
      1, kPaddingBytes / (params.v_head_dim * SizeOf(params.output_dtype)));
  plan.uniform_ = mask.uniform();

  bool any_tiled = false;
  int64_t most_keys = 0;  // packed of one kv head
  const auto add = [&](const BatchEntry& of) -> const EntryPlan& {
    const EntryPlan& entry =
        plan.entries_.emplace_back(PlanEntry(params, of, machine));
    plan.tile_q = std::max(plan.tile_q, entry.tile_q);
    (entry.direct ? plan.any_direct : any_tiled) |= entry.q_tiles > 0;
    most_keys = std::max(most_keys, entry.packed_keys);
    return entry;
  };
  // No count overflows: an entry has no more tiles than query rows, times its
  // splits no more than pairs of row and key, and Create has bounded both.
  if (plan.uniform_) {
    const EntryPlan& entry =
        add(params.batch > 0 ? mask.Entry(0) : BatchEntry());
    plan.table_ = KernelPlan::Table(params.batch,
                                    plan.CountsOf(entry, params.num_kv_heads));
  } else {
    std::vector<KernelPlan::Table::Counts> counts;
    std::vector<int64_t> work;
    for (int64_t b = 0; b < params.batch; ++b) {
      const BatchEntry entry = mask.Entry(b);
      counts.push_back(plan.CountsOf(add(entry), params.num_kv_heads));
      work.push_back(entry.VisiblePairs());
    }
    plan.table_ = KernelPlan::Table(counts, work);
  }
  plan.tile_q = std::max<int64_t>(plan.tile_q, 1);
  plan.tile_tasks = plan.table_.Total(KernelPlan::kTile);
  plan.merge_tasks = plan.table_.Total(KernelPlan::kMerge);
  plan.padding_tasks = plan.table_.Total(KernelPlan::kPadding);

  plan.isa = any_tiled ? products.isa : F32Isa(machine.isa);
  plan.parts = any_tiled ? products.parts : 1;
  plan.bf16_products = params.precision == Precision::kBF16 ||
                       (plan.isa != F32Isa(plan.isa) && plan.parts == 1);
  plan.variant = VariantName(any_tiled, plan.any_direct, plan.parts);
  plan.converts_values =
      plan.any_direct && !ReadsValuesInPlace(params, geometry);

  const SlotLayout layout =
      SlotLayout::Of(geometry, {.tile_q = plan.tile_q,
                                .tile_kv = plan.tile_kv,
                                .head_dim = params.head_dim,
                                .v_head_dim = params.v_head_dim,
                                .converts_values = plan.converts_values,
                                .parts = plan.parts});
  plan.slot_bytes = kWordBytes * layout.total;
  plan.packed_keys_bytes = AlignedBytes(
      CheckedProduct({kWordBytes, most_keys,
                      RowWords(plan.isa, params.head_dim), plan.parts}));
  const int64_t packed_values_bytes = AlignedBytes(
      CheckedProduct({kWordBytes, most_keys / ElementsPerWord(plan.isa),
                      layout.output_stride, plan.parts}));
  plan.packed_head_bytes = AlignedBytes(CheckedSum(
      {Workspace::kAlignment, plan.packed_keys_bytes, packed_values_bytes}));
  plan.packing_bytes =
      any_tiled ? AlignedBytes(
                      CheckedProduct({static_cast<int64_t>(sizeof(HeadPacking)),
                                      params.batch, params.num_kv_heads}))
                : 0;
  plan.partial_bytes = AlignedBytes(CheckedProduct(
      {kWordBytes, plan.table_.Total(KernelPlan::kPartialWord)}));
  return plan;
}

}  // namespace attnd
