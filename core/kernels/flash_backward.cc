// The backward pass of flash attention (Dao et al. 2022, section 3; the loops
// are in the order of FlashAttention-2, Dao 2023), for one tile of keys over
// all rows that see it.
//
// Maths. s is the score by the contract's formula, P = exp(s - lse), D =
// rowsum(dO * O), and s' is the derivative of s with respect to dot(q, k),
// which is the scale, times 1 - tanh^2 if there is a soft cap. Then
//   dP = dO V^T      dS = P * (dP - D) * s'
//   dV = P^T dO      dK = dS^T Q      dQ = dS K
// lse already contains the sinks, so P needs nothing else from them. Bias and
// mask get no gradient.
//
// Each tile has five products, which microkernels of the forward pass compute:
// S and dP with panels of K^T and V^T, dQ with K packed like values, and dV and
// dK with transposed weights. A tile of keys keeps its dK and dV in the slot
// while it goes over the rows. dQ is summed over tiles of keys in memory,
// always in the order of the keys. For this, a tile of rows counts the tiles of
// keys that have added to it, and each tile of keys waits for its turn. Memory
// is O(N): three packed copies, dQ, and one number for each row. bf16x3
// products take four copies of rows in addition.
//
// core/kernels/backward_f32-inl.h computes a pair of a tile of keys and a tile
// of rows. On AMX, if there are many rows, backward_bf16x3-inl.h does so with
// bf16x3 products, except for numbers that cannot be split.
//
// Edges are those of the forward pass. Hidden pairs have P = dS = 0. If a row
// of K, Q or dO is not finite, tiles at an edge mask it row by row.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/attention_jobs.h"
#include "core/geometry.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/backward_job.h"
#include "core/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/kernels/flash_backward.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/backward_bf16x3-inl.h"
#include "core/kernels/backward_f32-inl.h"
#include "core/kernels/backward_rows-inl.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/targets.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

float Dot(const float* a, const float* b, int64_t dims) {
  Vec sum = hn::Zero(kF);
  int64_t d = 0;
  for (; d + kLanes <= dims; d += kLanes) {
    sum = hn::MulAdd(hn::LoadU(kF, a + d), hn::LoadU(kF, b + d), sum);
  }
  if (d < dims) {
    const auto left = static_cast<size_t>(dims - d);
    sum = hn::MulAdd(LoadFirst(AsF32(), kF, a + d, left),
                     LoadFirst(AsF32(), kF, b + d, left), sum);
  }
  return hn::GetLane(hn::SumOfLanes(kF, sum));
}

template <BackwardKind kKind>
void PackKeys(const BackwardJob& job, const BackwardPlan::Tile& tile,
              const BatchEntry& entry) {
  if constexpr (kKind == BackwardKind::kBf16x3) {
    PackKeysBf16x3(job, tile, entry);
  } else {
    PackKeysF32<kKind>(job, tile, entry,
                       job.packed_keys + job.plan.PackedKeysAt(tile, entry));
  }
}

template <BackwardKind kKind>
void PrepareRows(const BackwardJob& job, const BackwardPlan::Tile& tile,
                 const BatchEntry& entry, float* slot) {
  const int64_t first = job.plan.FirstRow(tile, entry);
  const int64_t stride = RoundToLine(job.params.head_dim);
  int64_t rows = 0;
  VisitRows(job, tile, entry, [&](int64_t r, int64_t head, int64_t row) {
    job.deltas[first + r] =
        Dot(job.grad_output.Row(entry.batch, head, row),
            job.output.Row(entry.batch, head, row), job.params.v_head_dim);
    rows = r + 1;
  });
  if constexpr (kKind == BackwardKind::kBf16x3) {
    PackRowsBf16x3(job, tile, entry, slot);
    rows = job.plan.TileRows(entry);
  }
  std::fill_n(job.row_grads + first * stride, rows * stride, 0.0F);
}

template <BackwardKind kKind>
void FinishRows(const BackwardJob& job, const BackwardPlan::Tile& tile,
                const BatchEntry& entry) {
  const int64_t dims = job.params.head_dim;
  const float* const from =
      job.row_grads + job.plan.FirstRow(tile, entry) * RoundToLine(dims);
  constexpr bool kTransposed = kKind == BackwardKind::kBf16x3;
  const int64_t row_step = kTransposed ? 1 : RoundToLine(dims);
  const int64_t dim_step = kTransposed ? job.plan.TileRows(entry) : 1;
  // Scores were computed with the query times this factor, but their gradients
  // were computed without it.
  const float factor = ScoreScale(job.params).query_factor;
  VisitRows(job, tile, entry, [&](int64_t r, int64_t head, int64_t row) {
    float* to = job.grad_query.Row(entry.batch, head, row);
    for (int64_t d = 0; d < dims; ++d) {
      to[d] = factor * from[r * row_step + d * dim_step];
    }
  });
}

// The header of a slot: how far its run of tiles of keys has come.
struct SlotHeader {
  // Which products made the weights in the slot if their dQ is not added yet.
  enum Pending : int64_t { kNothing, kF32, kBf16x3 };

  int64_t next_rows;  // a tile of rows; < 0: no run is in progress
  int64_t next_tile;  // a tile of keys
  Pending pending;
};

constexpr SlotHeader kNoRun = {
    .next_rows = -1, .next_tile = 0, .pending = SlotHeader::kNothing};

// Writes a tile's gradients of keys and values.
void FinishKeys(const BackwardJob& job, const BackwardPlan::Tile& tile,
                const BatchEntry& entry, float* slot) {
  const BackwardLayout& layout = job.plan.slot_layout();
  const float* const grads = TileGrads(job, tile, entry, slot);
  const int64_t first = tile.tile * kTileKeys;
  const int64_t last = std::min(first + kTileKeys, entry.kv_extent);
  for (int64_t key = first; key < last; ++key) {
    const int64_t row = entry.kv_begin + key;
    const auto write = [&](const TensorView<float>& to, const float* from,
                           int64_t dims) {
      std::copy_n(from + (key - first) * RoundToLine(dims), dims,
                  to.Row(entry.batch, tile.kv_head, row));
    };
    write(job.grad_key, grads + layout.grad_key, job.params.head_dim);
    write(job.grad_value, grads + layout.grad_value, job.params.v_head_dim);
  }
}

// Waits until the tiles of keys before this one have added to a tile of rows,
// for about the time that a pair of tiles takes. Returns whether they have.
// Yielding instead would cost the set-up of the pair and the scheduler's lock.
// The wait is limited by time, not by a count, because a pause takes 10 cycles
// or 140.
bool IsTurn(const std::atomic_ref<int32_t>& turn, int32_t mine) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::microseconds kPatience{50};
  const Clock::time_point give_up = Clock::now() + kPatience;
  while (turn.load(std::memory_order_acquire) != mine) {
    hwy::Pause();
    if (Clock::now() >= give_up) return false;
  }
  return true;
}

// Adds what a tile of rows and a tile of keys give to each other. The rows get
// their share when it is this tile of keys' turn. Until then this returns
// false, and `pending` says what is left to do.
template <BackwardKind kKind>
bool ProcessPair(const BackwardJob& job, const BackwardPlan::Tile& tile,
                 const BatchEntry& entry, int64_t row_tile,
                 SlotHeader::Pending& pending, float* slot) {
  std::optional<Bf16x3Pair> bf16x3;
  std::optional<F32Pair<kKind>> f32;
  const int64_t begin = tile.tile * kTileKeys;
  if (!MaySee(job, entry, row_tile, begin, begin + kTileKeys)) {
    // There is nothing to add, but the turn must still pass on.
  } else if (kKind == BackwardKind::kBf16x3 && pending != SlotHeader::kF32) {
    bf16x3.emplace(job, tile, entry, row_tile, slot);
  } else {
    f32.emplace(job, tile, entry, row_tile, slot);
  }
  if (pending == SlotHeader::kNothing) {
    if (bf16x3 && bf16x3->seen()) {
      pending = SlotHeader::kBf16x3;
      if (!bf16x3->AddToKeys()) f32.emplace(job, tile, entry, row_tile, slot);
    }
    if (f32 && f32->seen()) {
      pending = SlotHeader::kF32;
      f32->AddToKeys();
    }
  }
  const std::atomic_ref<int32_t> turn(job.turns[job.plan.RowTileIndex(
      {tile.entry, tile.kv_head, row_tile}, entry)]);
  if (!IsTurn(turn, static_cast<int32_t>(tile.tile))) return false;
  if (pending == SlotHeader::kBf16x3) bf16x3->AddToRows();
  if (pending == SlotHeader::kF32) f32->AddToRows();
  pending = SlotHeader::kNothing;
  turn.store(static_cast<int32_t>(tile.tile) + 1, std::memory_order_release);
  return true;
}

template <BackwardKind kKind>
TileJob::Slice RunTiles(const BackwardJob& job, BackwardPlan::Tile tile,
                        const BatchEntry& entry, float* slot,
                        SliceControl& control) {
  std::optional<AmxTiles> amx;
  if (kKind == BackwardKind::kBf16x3) amx.emplace();
  const int64_t row_tiles = job.plan.RowTilesOf(entry);
  const int64_t first = tile.tile * job.plan.KeyTilesPerRun(entry);
  const int64_t last = std::min(first + job.plan.KeyTilesPerRun(entry),
                                job.plan.KeyTilesOf(entry));
  auto header = LoadHeader<SlotHeader>(slot);
  if (header.next_rows < 0) {
    const BackwardLayout& layout = job.plan.slot_layout();
    std::fill_n(slot + layout.grad_key, (last - first) * layout.grad_words,
                0.0F);
    header = {
        .next_rows = 0, .next_tile = first, .pending = SlotHeader::kNothing};
  }
  while (header.next_rows < row_tiles) {
    tile.tile = header.next_tile;
    if (!ProcessPair<kKind>(job, tile, entry, header.next_rows, header.pending,
                            slot)) {
      if (control.ShouldStop()) return TileJob::Slice::kDone;
      StoreHeader(slot, header);
      return TileJob::Slice::kYield;
    }
    if (++header.next_tile == last) {
      header.next_tile = first;
      if (++header.next_rows == row_tiles) break;
    }
    if (control.ShouldStop()) return TileJob::Slice::kDone;
    if (control.ShouldYield()) {
      StoreHeader(slot, header);
      return TileJob::Slice::kYield;
    }
  }
  for (tile.tile = first; tile.tile < last; ++tile.tile) {
    FinishKeys(job, tile, entry, slot);
  }
  StoreHeader(slot, kNoRun);
  return TileJob::Slice::kDone;
}

// Runs a task of one kind. `tile` is the tile or the run that the task's number
// stands for.
template <BackwardKind kKind>
TileJob::Slice RunTask(const BackwardJob& job, BackwardPhase phase,
                       const BackwardPlan::Tile& tile, const BatchEntry& entry,
                       float* slot, SliceControl& control) {
  switch (phase) {
    case BackwardPhase::kLoad:
      break;
    case BackwardPhase::kPackKeys:
      PackKeys<kKind>(job, tile, entry);
      break;
    case BackwardPhase::kPrepareRows:
      PrepareRows<kKind>(job, tile, entry, slot);
      break;
    case BackwardPhase::kKeyRuns:
      return RunTiles<kKind>(job, tile, entry, slot, control);
    case BackwardPhase::kFinishRows:
      FinishRows<kKind>(job, tile, entry);
      break;
  }
  return TileJob::Slice::kDone;
}

// The functions that run a task, in the order of BackwardKind. Null for a kind
// that this target does not need.
constexpr decltype(&RunTask<BackwardKind::kPanel>) kRunTask[kNumBackwardKinds] =
    {&RunTask<BackwardKind::kDirect>, &RunTask<BackwardKind::kPanel>, [] {
       if constexpr (HasKind(kIsa, TileKind::kAmxBf16x3)) {
         return &RunTask<BackwardKind::kBf16x3>;
       } else {
         return nullptr;
       }
     }()};

BackwardPlan::Tile TileOf(const BackwardPlan& plan, BackwardPhase phase,
                          int64_t task) {
  if (phase == BackwardPhase::kPackKeys) return plan.KeyTile(task);
  if (phase == BackwardPhase::kKeyRuns) return plan.KeyRun(task);
  return plan.RowTile(task);
}

}  // namespace

TileJob::Slice RunBackward(const BackwardJob& job, BackwardPhase phase,
                           int64_t task, int64_t slot, SliceControl& control) {
  if (phase == BackwardPhase::kLoad) {
    job.source->LoadPiece(task);
    return TileJob::Slice::kDone;
  }
  const BackwardPlan::Tile tile = TileOf(job.plan, phase, task);
  const BatchEntry entry = job.problem.visibility().Entry(tile.entry);
  const auto kind = static_cast<size_t>(job.plan.KindOf(entry));
  return kRunTask[kind](job, phase, tile, entry, job.Slot(slot), control);
}

void ClearBackwardSlot(float* slot) { StoreHeader(slot, kNoRun); }

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {

BackwardJob::BackwardJob(AttentionProblem of_problem, BackwardPlan of_plan,
                         const BackwardBuffers& buffers, InputSource* of_source,
                         int64_t num_threads, Workspace workspace)
    : problem(std::move(of_problem)),
      params(problem.params()),
      plan(std::move(of_plan)),
      scores(problem, buffers.bias, buffers.mask),
      source(of_source),
      query(problem.QueryView(buffers.query)),
      key(problem.KeySource(buffers.key)),
      value(problem.ValueSource(buffers.value)),
      output(problem.OutputView(buffers.output)),
      grad_output(problem.OutputView(buffers.grad_output)),
      lse(problem.LseView(buffers.lse)),
      grad_query(problem.QueryView(buffers.grad_query)),
      grad_key(problem.KeyView(buffers.grad_key)),
      grad_value(problem.ValueView(buffers.grad_value)),
      threads(num_threads),
      workspace_(std::move(workspace)),
      run_(ATTND_FUNCTION(plan.isa(), RunBackward)) {
  ArenaLayout arena(workspace_.data());
  packed_keys = arena.Add<float>(plan.packed_keys_bytes());
  packed_rows = arena.Add<float>(plan.packed_rows_bytes());
  row_grads = arena.Add<float>(plan.rows_bytes());
  deltas = arena.Add<float>(plan.deltas_bytes());
  turns = arena.Add<int32_t>(plan.turns_bytes());
  slot_memory = arena.Add<std::byte>(0);
  std::fill_n(turns, plan.row_tiles(), 0);
  for (int64_t slot = 0; slot < plan.Slots(threads); ++slot) {
    HWY_STATIC_DISPATCH(ClearBackwardSlot)(Slot(slot));
  }
}

std::vector<TileJob::Phase> BackwardJob::Phases() const {
  return {{.tasks = source == nullptr ? 0 : source->pieces(), .slots = threads},
          {.tasks = plan.key_tiles(), .slots = threads},
          {.tasks = plan.row_tiles(), .slots = plan.Slots(threads)},
          {.tasks = plan.key_runs(), .slots = plan.Slots(threads)},
          {.tasks = plan.row_tiles(), .slots = threads}};
}

TileJob::Slice BackwardJob::Run(int64_t phase, int64_t task, int64_t slot,
                                SliceControl& control) {
  return run_(*this, static_cast<BackwardPhase>(phase), task, slot, control);
}

std::unique_ptr<TileJob> MakeBackwardJob(const AttentionProblem& problem,
                                         BackwardPlan plan,
                                         const BackwardBuffers& buffers,
                                         InputSource* source, int64_t threads,
                                         Workspace workspace) {
  return std::make_unique<BackwardJob>(problem, std::move(plan), buffers,
                                       source, threads, std::move(workspace));
}

}  // namespace attnd
#endif  // HWY_ONCE
