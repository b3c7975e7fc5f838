// Tiled flash attention (Dao et al. 2022; online softmax by Milakov and
// Gimelshein, 2018), for one tile of query rows over the keys that they see.
//
// Maths. With c = |scale| * log2(e),
//   s = dot(q, k)          m = max s so far            p = 2^((s - m) * c)
//   l = sum p              o = sum p * v               output = o / l
// When the maximum grows, o and l shrink by 2^((m_old - m_new) * c). The
// difference is taken before the product with c, so that scores of any size
// keep the weights of those near the maximum. A negative scale flips the sign
// of q, which is exact. So c >= 0, and the largest s has the largest weight. If
// scores are more than scaled dot products (soft cap, ALiBi, bias), s is the
// final score and c = log2(e).
//
// There are several classes of tiles. All derive from the class in
// core/kernels/tile-inl.h, which has the softmax:
//   panel_tile    K^T is packed into panels once for each job. Microkernels of
//                 6 rows x 4 vectors multiply f32 (microkernels-inl.h) or pairs
//                 of bf16 (bf16_dot.cc).
//   amx_tile      Blocks of 32 x 32 on AMX (amx_bf16.cc) multiply bf16.
//   amx_bf16x3_tile  The same blocks multiply f32. Every number is split into
//                 three bf16 terms, and six products make one of f32.
//   direct_tile   For few rows. Each key is read once, in place, because to
//                 pack it would be the larger part of the work (direct-inl.h).
//
// Memory traffic of a tile of rows over a tile of keys. K^T and V are read once
// from the second-level cache. One piece at a time, a panel of K^T or the
// values of one sum for a group of columns, stays in the first-level cache for
// all blocks of rows. Scores are written once, turned into weights in place,
// and read once for each group of columns. A multiply-add of 6 x 4 vectors
// costs (1/6 + 1/4) loads, and the first-level cache delivers two loads in a
// cycle. Direct tiles read each byte of K and V from memory once, however many
// rows there are.
//
// Edges. A block of rows computes the keys that any of its rows sees. If its
// rows do not all see the same keys, a bit for each key hides scores, and
// hidden scores get weight 0. A hidden value could still reach a row as 0 *
// NaN. So tiles with such values are added row by row, and hidden values are
// left out.
//
// Bits. The result of a row depends on its own scores and on where tiles and
// their pieces begin, which is the same for every row. It does not depend on
// which rows share its block, or on how much of a tile the other rows see.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "core/attention_jobs.h"
#include "core/geometry.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/forward_job.h"
#include "core/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/kernels/flash_attention.cc"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/amx_bf16x3_tile-inl.h"
#include "core/kernels/amx_tile-inl.h"
#include "core/kernels/direct_tile-inl.h"
#include "core/kernels/pack_head-inl.h"
#include "core/kernels/panel_tile-inl.h"
#include "core/kernels/targets.h"
#include "core/kernels/tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

// Merges the splits of a tile and writes its results.
void Merge(const ForwardJob& job, int64_t task) {
  const AttentionParams& params = job.params;
  const TileTask tile = job.plan.Merge(task);
  const EntryPlan& plan = job.plan.Entry(tile.entry);
  const BatchEntry entry = job.SeeingEntry(tile.entry);
  const PartialLayout layout = job.plan.PartialOf(tile.entry);
  const float c = ScaleLog2(params);
  float* const first = job.partials + job.plan.PartialAt(tile);
  const int64_t first_row = tile.tile * plan.tile_q;
  const int64_t rows = RowsOf(job, tile, entry);
  for (int64_t r = 0; r < rows; ++r) {
    float max = kMinusInfinity;
    for (int64_t s = 0; s < plan.splits; ++s) {
      max = std::max(max, first[s * layout.total + layout.max + r]);
    }
    float sum = 0;
    float* const output = first + r * layout.output_stride;
    for (int64_t s = 0; s < plan.splits; ++s) {
      const float* part = first + s * layout.total;
      const float part_max = part[layout.max + r];
      const float factor = part_max == max ? 1.0F
                           : part_max == kMinusInfinity
                               ? 0.0F
                               : Exp2((part_max - max) * c);
      sum += part[layout.sum + r] * factor;
      const float* from = part + r * layout.output_stride;
      const Vec scale = hn::Set(kF, factor);
      for (int64_t d = 0; d < layout.output_stride; d += kLanes) {
        const Vec x = hn::Mul(hn::Load(kF, from + d), scale);
        hn::Store(s == 0 ? x : hn::Add(hn::Load(kF, output + d), x), kF,
                  output + d);
      }
    }
    const int64_t row = first_row + r;
    FinishRow(job, entry,
              tile.kv_head * params.HeadsPerGroup() + row / entry.q_len,
              row % entry.q_len, output, max, sum);
  }
}

// The header of a slot.
struct SlotHeader {
  int64_t next_key;        // < 0: no tile is in progress
  uint32_t largest_query;  // what LoadQuery returned
};

constexpr SlotHeader kNoTile = {.next_key = -1, .largest_query = 0};

// Runs a tile over its keys, from the first one or from where it stopped.
template <class SomeTile>
TileJob::Slice RunOverKeys(SomeTile& tile, int64_t tile_kv, float* slot,
                           SliceControl& control) {
  auto header = LoadHeader<SlotHeader>(slot);
  const KeyRange span = tile.span();
  int64_t& key = header.next_key;
  if (key < 0) {
    header.largest_query = tile.LoadQuery();
    tile.Reset();
    key = span.begin / tile_kv * tile_kv;
  }
  tile.Begin(header.largest_query);
  while (key < span.end) {
    const int64_t end = std::min(key + tile_kv, span.end);
    tile.ProcessKeys(key, end);
    key = end;
    if (key == span.end) break;
    if (control.ShouldStop()) return TileJob::Slice::kDone;
    if (control.ShouldYield()) {
      StoreHeader(slot, header);
      return TileJob::Slice::kYield;
    }
  }
  tile.Finish();
  StoreHeader(slot, kNoTile);
  return TileJob::Slice::kDone;
}

template <class SomeTile>
TileJob::Slice RunDirectTile(const ForwardJob& job, const TileTask& task,
                             float* slot, SliceControl& control) {
  SomeTile tile(job, task, slot);
  return RunOverKeys(tile, job.plan.tile_kv, slot, control);
}

template <class SomeTile>
TileJob::Slice PackAndRun(const ForwardJob& job, const TileTask& task,
                          float* slot, SliceControl& control) {
  const PackedHead<SomeTile::kTileKind> head(job, task);
  if (const auto slice = head.Pack(control)) return *slice;
  SomeTile tile(job, task, head, slot);
  return RunOverKeys(tile, job.plan.tile_kv, slot, control);
}

template <class SomeTile>
TileJob::Slice RunPackedTile(const ForwardJob& job, const TileTask& task,
                             float* slot, SliceControl& control) {
  const TileJob::Slice slice = PackAndRun<SomeTile>(job, task, slot, control);
  if (slice == TileJob::Slice::kDone) {
    PackedHead<SomeTile::kTileKind>::Leave(job, task);
  }
  return slice;
}

using RunTileFn = TileJob::Slice (*)(const ForwardJob& job,
                                     const TileTask& task, float* slot,
                                     SliceControl& control);

// Returns the function that runs a tile, or null for kinds that this target
// does not need.
template <class SomeTile>
constexpr RunTileFn RunIfNeeded() {
  if constexpr (IsDirect(SomeTile::kTileKind)) {
    return &RunDirectTile<SomeTile>;
  } else if constexpr (HasKind(kIsa, SomeTile::kTileKind)) {
    return &RunPackedTile<SomeTile>;
  } else {
    return nullptr;
  }
}

// The functions that run a tile, in the order of TileKind.
constexpr RunTileFn kRunTile[kNumTileKinds] = {
    RunIfNeeded<DirectTile<TileKind::kDirect>>(),
    RunIfNeeded<DirectTile<TileKind::kDirectRounded>>(),
    RunIfNeeded<PanelTile<TileKind::kPanel>>(),
    RunIfNeeded<PanelTile<TileKind::kPanelRounded>>(),
    RunIfNeeded<PanelTile<TileKind::kPanelBf16>>(),
    RunIfNeeded<AmxBf16Tile>(),
    RunIfNeeded<AmxBf16x3Tile>()};

TileJob::Slice RunTile(const ForwardJob& job, int64_t number, float* slot,
                       SliceControl& control) {
  const TileTask task = job.plan.Tile(number);
  const EntryPlan& entry = job.plan.Entry(task.entry);
  // A tile without keys has nothing to pack.
  const TileKind kind = entry.kv_len > 0 ? entry.kind : TileKind::kDirect;
  return kRunTile[static_cast<size_t>(kind)](job, task, slot, control);
}

}  // namespace

TileJob::Slice RunForward(const ForwardJob& job, ForwardPhase phase,
                          int64_t task, int64_t slot, SliceControl& control) {
  switch (phase) {
    case ForwardPhase::kLoad:
      job.source->LoadPiece(task);
      break;
    case ForwardPhase::kTiles:
      return RunTile(job, task, job.Slot(slot), control);
    case ForwardPhase::kMerge:
      Merge(job, task);
      break;
    case ForwardPhase::kPadding:
      job.WritePadding(task);
      break;
  }
  return TileJob::Slice::kDone;
}

void ClearForwardSlot(float* slot) { StoreHeader(slot, kNoTile); }

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {
namespace {

// Returns whether the workers that pack keys and values can load them: if all
// keys that any row sees are packed, and their rows follow one another in
// memory.
bool LoadsWithPacking(const AttentionProblem& problem, const KernelPlan& plan,
                      const InputSource* source) {
  return source != nullptr && source->pieces_before_keys() < source->pieces() &&
         plan.packing_bytes > 0 && !plan.any_direct &&
         problem.params().layout == Layout::kBhsd;
}

}  // namespace

ForwardJob::ForwardJob(AttentionProblem of_problem, KernelPlan of_plan,
                       const AttentionBuffers& buffers, InputSource* of_source,
                       int64_t num_threads, Workspace workspace)
    : problem(std::move(of_problem)),
      params(problem.params()),
      plan(std::move(of_plan)),
      scores(problem, buffers.bias, buffers.mask),
      source(of_source),
      loads_with_packing(LoadsWithPacking(problem, plan, source)),
      query(problem.QueryView(static_cast<const std::byte*>(buffers.query))),
      key(problem.KeySource(buffers.key)),
      value(problem.ValueSource(buffers.value)),
      output(problem.OutputView(static_cast<std::byte*>(buffers.output))),
      lse(problem.LseView(params.return_lse ? buffers.lse : nullptr)),
      threads(num_threads),
      packed_heads(plan.PackedHeads(threads)),
      workspace_(std::move(workspace)),
      run_(ATTND_FUNCTION(plan.isa, RunForward)) {
  ArenaLayout arena(workspace_.data());
  heads = arena.Add<std::byte>(packed_heads * plan.packed_head_bytes);
  for (int64_t place = 0; place < packed_heads; ++place) {
    *reinterpret_cast<uint32_t*>(PackedHead(place)) = 0;
  }
  packing = arena.Add<HeadPacking>(plan.packing_bytes);
  if (plan.packing_bytes > 0) {
    std::fill_n(packing, params.batch * params.num_kv_heads, HeadPacking{});
  }
  partials = arena.Add<float>(plan.partial_bytes);
  slots = arena.Add<std::byte>(0);
  for (int64_t slot = 0; slot < plan.Slots(threads); ++slot) {
    HWY_STATIC_DISPATCH(ClearForwardSlot)(Slot(slot));
  }
}

std::vector<TileJob::Phase> ForwardJob::Phases() const {
  const int64_t pieces = source == nullptr    ? 0
                         : loads_with_packing ? source->pieces_before_keys()
                                              : source->pieces();
  return {{.tasks = pieces, .slots = threads},
          {.tasks = plan.tile_tasks, .slots = plan.Slots(threads)},
          {.tasks = plan.merge_tasks, .slots = threads},
          {.tasks = plan.padding_tasks, .slots = threads}};
}

TileJob::Slice ForwardJob::Run(int64_t phase, int64_t task, int64_t slot,
                               SliceControl& control) {
  return run_(*this, static_cast<ForwardPhase>(phase), task, slot, control);
}

std::unique_ptr<TileJob> MakeForwardJob(const AttentionProblem& problem,
                                        KernelPlan plan,
                                        const AttentionBuffers& buffers,
                                        InputSource* source, int64_t threads,
                                        Workspace workspace) {
  return std::make_unique<ForwardJob>(problem, std::move(plan), buffers, source,
                                      threads, std::move(workspace));
}

void ForwardJob::WritePadding(int64_t task) const {
  const PaddingTask rows = plan.Padding(task);
  const BatchEntry entry = problem.visibility().Entry(rows.entry);
  const int64_t rows_of_head = entry.q_len - entry.q_seeing;
  const int64_t bytes = SizeOf(params.output_dtype);
  for (int64_t r = rows.first; r < rows.last; ++r) {
    const int64_t head = r / rows_of_head;
    const int64_t row = entry.q_begin + entry.q_seeing + r % rows_of_head;
    std::memset(output.RowBytes(bytes, entry.batch, head, row), 0,
                static_cast<size_t>(params.v_head_dim * bytes));
    if (lse.data == nullptr) continue;
    *lse.Row(entry.batch, head, row) =
        params.has_sinks ? problem.sink_logits()[static_cast<size_t>(head)]
                         : -std::numeric_limits<float>::infinity();
  }
}

// The rows of a packing task are in one KvRows.
static_assert(KvSource::kAlignedKeys % KernelPlan::kKeysPerPackTask == 0);

void ForwardJob::Load(const PackTask& task) const {
  const BatchEntry entry = problem.visibility().Entry(task.entry);
  const int64_t keys = task.last - task.first;
  const KvRows k = key.Rows(entry, task.kv_head, task.first);
  source->LoadKeys(k.first - key.data(), keys * k.stride_bytes);
  const KvRows v = value.Rows(entry, task.kv_head, task.first);
  source->LoadValues(v.first - value.data(), keys * v.stride_bytes);
}

}  // namespace attnd
#endif  // HWY_ONCE
