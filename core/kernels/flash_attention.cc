// Tiled flash attention (Dao et al. 2022; online softmax after Milakov and
// Gimelshein 2018), for one tile of query rows over all the keys that they see.
//
// Maths. With c = |scale| * log2(e),
//   s = dot(q, k)          m = max s so far            p = 2^((s - m) * c)
//   l = sum p              o = sum p * v               output = o / l
// and o and l shrink by alpha = 2^((m_old - m_new) * c) when the maximum grows.
// The difference comes first, so that scores of any size keep the weights of
// those near the maximum. A negative scale flips the sign of K while it is
// packed, which is exact, so that c >= 0 and the largest s has the largest
// weight.
//
// Memory traffic of a tile of R rows over a tile of C keys: K^T and V are read
// once from the second-level cache for each block of 6 rows, R / 6 times; the
// scores are written once, turned into weights in place, and read once. So a
// multiply-add costs (1/6 + 1/4) loads, of which the cache gives two a cycle.
//
// Edges. A row sees the range of keys that the mask gave it, and touches no
// other: its weights are made from its own range, and where the ranges in a
// block of rows differ, the keys that not all of them see are added row by row.
// A hidden NaN can therefore reach nothing.
#include "core/kernels/flash_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>

#include "core/checked_math.h"
#include "core/kernels/geometry.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/kernels/flash_attention.cc"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/exp2-inl.h"
#include "hwy/highway.h"

// Every loop over rows or vectors of a microkernel: its arrays are registers
// only if no index is left.
#undef ATTND_UNROLL
#define ATTND_UNROLL HWY_PRAGMA(GCC unroll 16)

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_AVX3
constexpr Isa kIsa = Isa::kAvx512;
#elif HWY_TARGET == HWY_AVX2
constexpr Isa kIsa = Isa::kAvx2;
#else
constexpr Isa kIsa = Isa::kScalar;
#endif

constexpr Geometry kGeometry = GeometryOf(kIsa);
constexpr auto kRows = static_cast<size_t>(kGeometry.rows);
constexpr auto kVectors = static_cast<size_t>(kGeometry.vectors);
constexpr int64_t kLanes = kGeometry.lanes;
constexpr int64_t kPanelKeys = kGeometry.panel_keys();

// Exactly as many lanes as the plan counts on, whatever the machine has.
using Floats = hn::CappedTag<float, static_cast<size_t>(kLanes)>;
using Vec = hn::Vec<Floats>;
constexpr Floats kF;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// How the scale is split between the packed keys and the softmax.
struct ScoreScale {
  // |scale| * log2(e) can exceed the largest float; a power of two that moves
  // to the keys, exact there, makes room for it.
  explicit ScoreScale(const AttentionParams& params)
      : key_factor(
            std::copysign(std::abs(params.score_scale) > 1e38f ? 4.0f : 1.0f,
                          params.score_scale)),
        magnitude(std::abs(params.score_scale / key_factor)) {}

  float key_factor;  // of K while it is packed; has the scale's sign
  float magnitude;   // of what is left, >= 0
};

// ---------------------------------------------------------------------------
// Packing

// dst[d][j] = factor * src[j][d] for the `keys` rows of one panel; the panel's
// other columns become 0. src rows are `stride` apart, dst rows kPanelKeys.
void PackPanel(const float* src, int64_t stride, int64_t keys, int64_t head_dim,
               float factor, float* HWY_RESTRICT dst) {
  int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> f4;
  const hn::Repartition<double, decltype(f4)> d2;
  const auto factor4 = hn::Set(f4, factor);
  for (; j + 4 <= keys; j += 4) {
    const float* rows = src + j * stride;
    int64_t d = 0;
    for (; d + 4 <= head_dim; d += 4) {
      const auto a = hn::LoadU(f4, rows + d);
      const auto b = hn::LoadU(f4, rows + stride + d);
      const auto c = hn::LoadU(f4, rows + 2 * stride + d);
      const auto e = hn::LoadU(f4, rows + 3 * stride + d);
      const auto ab_low = hn::BitCast(d2, hn::InterleaveLower(f4, a, b));
      const auto ab_high = hn::BitCast(d2, hn::InterleaveUpper(f4, a, b));
      const auto ce_low = hn::BitCast(d2, hn::InterleaveLower(f4, c, e));
      const auto ce_high = hn::BitCast(d2, hn::InterleaveUpper(f4, c, e));
      const auto put = [&](int64_t row, auto column) HWY_ATTR {
        hn::StoreU(hn::Mul(hn::BitCast(f4, column), factor4), f4,
                   dst + (d + row) * kPanelKeys + j);
      };
      put(0, hn::InterleaveLower(d2, ab_low, ce_low));
      put(1, hn::InterleaveUpper(d2, ab_low, ce_low));
      put(2, hn::InterleaveLower(d2, ab_high, ce_high));
      put(3, hn::InterleaveUpper(d2, ab_high, ce_high));
    }
    for (; d < head_dim; ++d) {
      for (int64_t i = 0; i < 4; ++i) {
        dst[d * kPanelKeys + j + i] = factor * rows[i * stride + d];
      }
    }
  }
#endif
  for (int64_t d = 0; d < head_dim; ++d) {
    float* row = dst + d * kPanelKeys;
    for (int64_t i = j; i < keys; ++i) row[i] = factor * src[i * stride + d];
    std::fill(row + keys, row + kPanelKeys, 0.0f);
  }
}

// Where kv head `kv_head` of batch entry `b` has its panels.
float* PackedHead(const FlashJob& job, int64_t b, int64_t kv_head) {
  const int64_t head_floats =
      RoundUp(job.params->kv_len, kPanelKeys) * job.params->head_dim;
  return job.packed_keys +
         (b * job.params->num_kv_heads + kv_head) * head_floats;
}

void PackKeys(const FlashJob& job, int64_t task) {
  const AttentionParams& params = *job.params;
  const int64_t panels = CeilDiv(params.kv_len, kPanelKeys);
  const int64_t tasks_per_head =
      CeilDiv(panels, KernelPlan::kPanelsPerPackTask);
  const int64_t head_index = task / tasks_per_head;
  const int64_t b = head_index / params.num_kv_heads;
  const int64_t kv_head = head_index % params.num_kv_heads;
  const int64_t first = task % tasks_per_head * KernelPlan::kPanelsPerPackTask;
  const int64_t last = std::min(first + KernelPlan::kPanelsPerPackTask, panels);
  const float factor = ScoreScale(params).key_factor;
  float* packed = PackedHead(job, b, kv_head);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t key = panel * kPanelKeys;
    PackPanel(job.key.Row(b, kv_head, key), job.key.strides[2],
              std::min(kPanelKeys, params.kv_len - key), params.head_dim,
              factor, packed + key * params.head_dim);
  }
}

// ---------------------------------------------------------------------------
// Microkernels

// Memory that the next phase of a tile will read, fetched into the second-level
// cache one line a step while this phase computes: on a core whose outer caches
// are slow or shared this is a third of the speed (docs/performance.md).
class Ahead {
 public:
  static constexpr int64_t kLineBytes = 64;

  Ahead(const float* from, bool advance)
      : at_(reinterpret_cast<const char*>(from)),
        step_(advance ? kLineBytes : 0) {}

  HWY_INLINE void Next() {
    __builtin_prefetch(at_, 0, 2);
    at_ += step_;
  }

 private:
  const char* at_;
  int64_t step_;
};

// The fewest terms that are worth a sum of their own.
constexpr int64_t kMinHalf = 16;

// scores[r][column] = dot(q[r], panel column) for R rows and N vectors of a
// panel. With kTrackMax, row_max[r] keeps the lane-wise maximum.
template <size_t R, size_t N, bool kTrackMax>
void ScoreBlock(const float* const* q, const float* HWY_RESTRICT panel,
                int64_t head_dim, float* HWY_RESTRICT scores,
                int64_t score_stride, float* HWY_RESTRICT row_max,
                Ahead ahead) {
  Vec acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = hn::Zero(kF);
  }
  const float* row[R];
  for (size_t r = 0; r < R; ++r) row[r] = q[r];
  // Two sums of half the terms each, added at the end, round half as much as
  // one: a partial sum's rounding error grows with the sum.
  const bool halved = head_dim >= 2 * kMinHalf;
  int64_t end = halved ? head_dim / 2 : head_dim;
  int64_t d = 0;
  while (true) {
    for (; d < end; ++d) {
      Vec k[N];
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        k[n] = hn::Load(kF, panel + n * static_cast<size_t>(kLanes));
      }
      panel += kPanelKeys;
      ahead.Next();
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) {
        const Vec x = hn::Set(kF, row[r][d]);
        ATTND_UNROLL
        for (size_t n = 0; n < N; ++n) {
          acc[r][n] = hn::MulAdd(x, k[n], acc[r][n]);
        }
      }
    }
    if (d == head_dim) break;
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      float* out = scores + static_cast<int64_t>(r) * score_stride;
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        hn::Store(acc[r][n], kF, out + n * static_cast<size_t>(kLanes));
        acc[r][n] = hn::Zero(kF);
      }
    }
    end = head_dim;
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    float* out = scores + static_cast<int64_t>(r) * score_stride;
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      float* to = out + n * static_cast<size_t>(kLanes);
      if (halved) acc[r][n] = hn::Add(acc[r][n], hn::Load(kF, to));
      hn::Store(acc[r][n], kF, to);
    }
    if constexpr (kTrackMax) {
      float* lanes = row_max + r * static_cast<size_t>(kLanes);
      Vec max = hn::Load(kF, lanes);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) max = hn::Max(max, acc[r][n]);
      hn::Store(max, kF, lanes);
    }
  }
}

// output[r][column] = alpha[r] * output[r][column] + sum_j weights[r][j] *
// value[j][column] for R rows and N vectors of columns; of the last vector only
// `last_lanes` columns exist where kPartial.
template <size_t R, size_t N, bool kPartial>
void ValueBlock(const float* HWY_RESTRICT weights, int64_t weight_stride,
                const float* HWY_RESTRICT value, int64_t value_stride,
                int64_t keys, const float* HWY_RESTRICT alpha,
                float* HWY_RESTRICT output, int64_t output_stride,
                [[maybe_unused]] int64_t last_lanes, Ahead ahead) {
  [[maybe_unused]] const auto mask =
      hn::FirstN(kF, static_cast<size_t>(last_lanes));
  Vec acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = hn::Zero(kF);
  }
  for (int64_t j = 0; j < keys; ++j) {
    Vec v[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      const float* from = value + n * static_cast<size_t>(kLanes);
      if (kPartial && n + 1 == N) {
        v[n] = hn::MaskedLoad(mask, kF, from);
      } else {
        v[n] = hn::LoadU(kF, from);
      }
    }
    value += value_stride;
    ahead.Next();
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const Vec p =
          hn::Set(kF, weights[static_cast<int64_t>(r) * weight_stride + j]);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) acc[r][n] = hn::MulAdd(p, v[n], acc[r][n]);
    }
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    const Vec scale = hn::Set(kF, alpha[r]);
    float* out = output + static_cast<int64_t>(r) * output_stride;
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      float* to = out + n * static_cast<size_t>(kLanes);
      hn::Store(hn::MulAdd(scale, hn::Load(kF, to), acc[r][n]), kF, to);
    }
  }
}

using ScoreBlockFn = decltype(&ScoreBlock<1, 1, false>);
using ValueBlockFn = decltype(&ValueBlock<1, 1, false>);

// [rows - 1][vectors - 1] of every microkernel, so that an edge costs a
// smaller one and never a scalar loop.
template <typename Fn>
using BlockTable = std::array<std::array<Fn, kVectors>, kRows>;

template <bool kTrackMax, size_t... I>
constexpr BlockTable<ScoreBlockFn> MakeScoreTable(std::index_sequence<I...>) {
  BlockTable<ScoreBlockFn> table{};
  ((table[I / kVectors][I % kVectors] =
        &ScoreBlock<I / kVectors + 1, I % kVectors + 1, kTrackMax>),
   ...);
  return table;
}

template <bool kPartial, size_t... I>
constexpr BlockTable<ValueBlockFn> MakeValueTable(std::index_sequence<I...>) {
  BlockTable<ValueBlockFn> table{};
  ((table[I / kVectors][I % kVectors] =
        &ValueBlock<I / kVectors + 1, I % kVectors + 1, kPartial>),
   ...);
  return table;
}

using AllBlocks = std::make_index_sequence<kRows * kVectors>;
constexpr BlockTable<ScoreBlockFn> kScoreBlocks[2] = {
    MakeScoreTable<false>(AllBlocks()), MakeScoreTable<true>(AllBlocks())};
constexpr BlockTable<ValueBlockFn> kValueBlocks[2] = {
    MakeValueTable<false>(AllBlocks()), MakeValueTable<true>(AllBlocks())};

// output[column] += weight * value[column], for the keys that only some rows
// of a block see.
void AddValueRow(float weight, const float* HWY_RESTRICT value, int64_t columns,
                 float* HWY_RESTRICT output) {
  const Vec p = hn::Set(kF, weight);
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    const Vec o = hn::Load(kF, output + c);
    hn::Store(hn::MulAdd(p, hn::LoadU(kF, value + c), o), kF, output + c);
  }
  if (c < columns) {
    const auto mask = hn::FirstN(kF, static_cast<size_t>(columns - c));
    const Vec o = hn::Load(kF, output + c);
    hn::Store(hn::MulAdd(p, hn::MaskedLoad(mask, kF, value + c), o), kF,
              output + c);
  }
}

// ---------------------------------------------------------------------------
// Softmax

float RangeMax(const float* scores, int64_t begin, int64_t end) {
  Vec max = hn::Set(kF, kMinusInfinity);
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) {
    max = hn::Max(max, hn::LoadU(kF, scores + j));
  }
  float result = hn::GetLane(hn::MaxOfLanes(kF, max));
  for (; j < end; ++j) result = std::max(result, scores[j]);
  return result;
}

// 2^x for one x <= 0, from the same polynomial.
float Exp2(float x) { return hn::GetLane(Exp2NonPositive(kF, hn::Set(kF, x))); }

// scores[j] = 2^((scores[j] - max) * c) for begin <= j < end. Returns their
// sum, in an order that depends on begin and end alone.
float Exponentiate(float* HWY_RESTRICT scores, int64_t begin, int64_t end,
                   float c, float max) {
  const Vec scale = hn::Set(kF, c);
  const Vec top = hn::Set(kF, max);
  Vec sum0 = hn::Zero(kF);
  Vec sum1 = hn::Zero(kF);
  const auto weigh = [&](int64_t j) HWY_ATTR {
    return Exp2NonPositive(
        kF, hn::Mul(hn::Sub(hn::LoadU(kF, scores + j), top), scale));
  };
  int64_t j = begin;
  for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
    const Vec p0 = weigh(j);
    const Vec p1 = weigh(j + kLanes);
    hn::StoreU(p0, kF, scores + j);
    hn::StoreU(p1, kF, scores + j + kLanes);
    sum0 = hn::Add(sum0, p0);
    sum1 = hn::Add(sum1, p1);
  }
  for (; j < end; j += kLanes) {
    // What lies beyond `end` is within the row's padding: read, and dropped.
    const auto mask =
        hn::FirstN(kF, static_cast<size_t>(std::min(kLanes, end - j)));
    const Vec p = hn::IfThenElseZero(mask, weigh(j));
    hn::StoreU(p, kF, scores + j);
    sum0 = hn::Add(sum0, p);
  }
  return hn::GetLane(hn::SumOfLanes(kF, hn::Add(sum0, sum1)));
}

// The same where a score is +inf: its weight is, that of NaN is NaN, and all
// others vanish beside it. Output becomes NaN and lse +inf, as the formula has
// it.
float ExponentiateInfinite(float* scores, int64_t begin, int64_t end, float c) {
  float sum = 0;
  for (int64_t j = begin; j < end; ++j) {
    const bool vanishes = scores[j] < std::numeric_limits<float>::infinity();
    scores[j] = vanishes ? 0.0f : c * scores[j];
    sum += scores[j];
  }
  return sum;
}

// ---------------------------------------------------------------------------
// A tile

// Rows first..first + rows of a tile that go through the microkernels
// together.
struct Block {
  int64_t first = 0;
  int64_t rows = 0;
  KeyRange all;   // what every row sees
  KeyRange some;  // the smallest range that holds what any row sees
};

KeyRange Clip(const KeyRange& range, int64_t begin, int64_t end) {
  const int64_t low = std::clamp(range.begin, begin, end);
  return {low, std::clamp(range.end, low, end)};
}

// Rows whose ranges differ by more keys than this go into different blocks,
// since what they do not share is added row by row.
constexpr int64_t kMaxSpread = 16;

// Keys whose weighted values are summed before they join the output: what a
// partial sum rounds off grows with the sum, so several short ones are more
// exact than one long one. 128 keeps a real layer (tests/data) below the error
// of other f32 kernels (docs/performance.md has the price).
constexpr int64_t kKeysPerSum = 128;
constexpr float kOnes[] = {1, 1, 1, 1, 1, 1};
static_assert(std::size(kOnes) >= kRows);

// One tile: `rows` rows of the matrix that the heads of a GQA group make up.
class Tile {
 public:
  Tile(const FlashJob& job, int64_t task, float* slot)
      : job_(job),
        params_(*job.params),
        plan_(*job.plan),
        layout_(SlotLayout::Of(kGeometry, plan_.tile_q, plan_.tile_kv,
                               params_.v_head_dim)),
        slot_(slot),
        scale_(ScoreScale(params_).magnitude),
        scale_log2_(scale_ * 1.44269504088896340736f) {
    const int64_t head_index = task / plan_.q_tiles;
    // Later rows see more keys where a rule is causal: heaviest tiles first.
    const int64_t tile = plan_.q_tiles - 1 - task % plan_.q_tiles;
    batch_ = head_index / params_.num_kv_heads;
    kv_head_ = head_index % params_.num_kv_heads;
    first_row_ = tile * plan_.tile_q;
    rows_ = std::min(plan_.tile_q,
                     params_.HeadsPerGroup() * params_.q_len - first_row_);
    const BatchEntry entry = job_.mask->Entry(batch_);
    for (int64_t r = 0; r < rows_; ++r) {
      const auto [head, q_row] = HeadAndRow(r);
      q_[r] = job_.query.Row(batch_, head, q_row);
      ranges_[r] = entry.VisibleRange(q_row);
    }
    MakeBlocks();
    for (int64_t b = 0; b < num_blocks_; ++b) {
      span_ = Union(span_, blocks_[b].some);
    }
  }

  // The keys that any row sees.
  const KeyRange& span() const { return span_; }

  // Before the first kv tile of a fresh tile.
  void Reset() {
    std::fill_n(slot_ + layout_.max, rows_, kMinusInfinity);
    std::fill_n(slot_ + layout_.sum, rows_, 0.0f);
    std::fill_n(slot_ + layout_.output, rows_ * layout_.output_stride, 0.0f);
  }

  // Takes in keys begin <= j < end; begin is a multiple of the panel.
  void Absorb(int64_t begin, int64_t end) {
    const float* value = job_.value.Row(batch_, kv_head_, begin);
    // Rows of V that are not dense are left to the hardware.
    const bool dense = job_.value.strides[2] == params_.v_head_dim;
    FetchAhead(value, dense ? (end - begin) * params_.v_head_dim : 0);
    ComputeScores(begin, end);
    const int64_t next = std::min(plan_.tile_kv, span_.end - end);
    FetchAhead(PackedHead(job_, batch_, kv_head_) + end * params_.head_dim,
               next * params_.head_dim);
    for (int64_t b = 0; b < num_blocks_; ++b) {
      const Block& block = blocks_[b];
      if (Clip(block.some, begin, end).size() == 0) continue;
      Softmax(block, begin, end);
      AddValues(block, begin, end, value);
    }
  }

  // Writes output and lse.
  void Finish() const {
    for (int64_t r = 0; r < rows_; ++r) {
      const auto [head, q_row] = HeadAndRow(r);
      const float sum = slot_[layout_.sum + r];
      const float* o = slot_ + layout_.output + r * layout_.output_stride;
      float* out = job_.output.Row(batch_, head, q_row);
      if (sum == 0.0f) {
        std::fill_n(out, params_.v_head_dim, 0.0f);
      } else {
        const float inverse = 1.0f / sum;
        for (int64_t c = 0; c < params_.v_head_dim; ++c) {
          out[c] = o[c] * inverse;
        }
      }
      if (job_.lse.data != nullptr) {
        const double max = double{scale_} * slot_[layout_.max + r];
        *job_.lse.Row(batch_, head, q_row) =
            sum == 0.0f ? kMinusInfinity
                        : static_cast<float>(max + std::log(double{sum}));
      }
    }
  }

 private:
  static KeyRange Union(const KeyRange& a, const KeyRange& b) {
    if (a.size() == 0) return b;
    if (b.size() == 0) return a;
    return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
  }

  static bool IsFull(const Block& block, int64_t begin, int64_t end) {
    return block.all.begin <= begin && block.all.end >= end &&
           (end - begin) % kPanelKeys == 0;
  }

  std::pair<int64_t, int64_t> HeadAndRow(int64_t r) const {
    const int64_t row = first_row_ + r;
    return {kv_head_ * params_.HeadsPerGroup() + row / params_.q_len,
            row % params_.q_len};
  }

  void MakeBlocks() {
    for (int64_t r = 0; r < rows_; ++r) {
      const KeyRange range = ranges_[r];
      if (num_blocks_ > 0) {
        Block& last = blocks_[num_blocks_ - 1];
        const KeyRange all = {std::max(last.all.begin, range.begin),
                              std::min(last.all.end, range.end)};
        const KeyRange some = Union(last.some, range);
        if (last.rows < static_cast<int64_t>(kRows) &&
            some.size() - all.size() <= kMaxSpread) {
          last = {last.first, last.rows + 1, all, some};
          continue;
        }
      }
      blocks_[num_blocks_++] = {r, 1, range, range};
    }
  }

  // `floats` from `from` on are what the next phase reads.
  void FetchAhead(const float* from, int64_t floats) {
    ahead_ = from;
    ahead_end_ = from + floats;
  }

  // The share of it for a microkernel of `steps` steps.
  Ahead TakeAhead(int64_t steps) {
    constexpr int64_t kLineFloats = Ahead::kLineBytes / 4;
    if (ahead_ >= ahead_end_) return {slot_, false};
    const Ahead ahead(ahead_, true);
    ahead_ += std::min(steps * kLineFloats, ahead_end_ - ahead_);
    return ahead;
  }

  void ComputeScores(int64_t begin, int64_t end) {
    std::fill_n(slot_ + layout_.row_max_lanes, rows_ * kLanes, kMinusInfinity);
    const float* packed = PackedHead(job_, batch_, kv_head_);
    for (int64_t key = begin; key < end; key += kPanelKeys) {
      const float* panel = packed + key * params_.head_dim;
      const int64_t panel_end = std::min(key + kPanelKeys, end);
      for (int64_t b = 0; b < num_blocks_; ++b) {
        const Block& block = blocks_[b];
        const KeyRange seen = Clip(block.some, key, panel_end);
        if (seen.size() == 0) continue;
        const auto vectors =
            static_cast<size_t>(CeilDiv(seen.end - key, kLanes));
        kScoreBlocks[IsFull(block, begin, end)]
                    [static_cast<size_t>(block.rows - 1)][vectors - 1](
                        &q_[block.first], panel, params_.head_dim,
                        Scores(block.first) + key - begin, layout_.score_stride,
                        slot_ + layout_.row_max_lanes + block.first * kLanes,
                        TakeAhead(params_.head_dim));
      }
    }
  }

  // Turns a block's scores into weights and moves maxima and sums on. First
  // all maxima, then all weights: each row's steps wait for one another, but
  // not for those of the next row.
  void Softmax(const Block& block, int64_t begin, int64_t end) {
    const bool full = IsFull(block, begin, end);
    const int64_t last = block.first + block.rows;
    float base[kRows];
    for (int64_t r = block.first; r < last; ++r) {
      const KeyRange seen = Clip(ranges_[r], begin, end);
      const float tile_max =
          full ? hn::GetLane(hn::MaxOfLanes(
                     kF,
                     hn::Load(kF, slot_ + layout_.row_max_lanes + r * kLanes)))
               : RangeMax(Scores(r), seen.begin - begin, seen.end - begin);
      float& max = slot_[layout_.max + r];
      const float new_max = std::max(max, tile_max);
      // A row without a score above -inf keeps weights of 2^-inf = 0.
      base[r - block.first] = new_max == kMinusInfinity ? 0.0f : new_max;
      float alpha = 1.0f;
      if (max == kMinusInfinity) {
        alpha = 0.0f;
      } else if (max != new_max) {
        alpha = Exp2((max - new_max) * scale_log2_);
      }
      slot_[layout_.alpha + r] = alpha;
      slot_[layout_.sum + r] *= alpha;
      max = new_max;
    }
    for (int64_t r = block.first; r < last; ++r) {
      const KeyRange seen = Clip(ranges_[r], begin, end);
      const float row_base = base[r - block.first];
      slot_[layout_.sum + r] +=
          row_base == std::numeric_limits<float>::infinity()
              ? ExponentiateInfinite(Scores(r), seen.begin - begin,
                                     seen.end - begin, scale_log2_)
              : Exponentiate(Scores(r), seen.begin - begin, seen.end - begin,
                             scale_log2_, row_base);
    }
  }

  void AddValues(const Block& block, int64_t begin, int64_t end,
                 const float* value) {
    const KeyRange all = Clip(block.all, begin, end);
    const int64_t stride = job_.value.strides[2];
    float* output = Output(block.first);
    // Columns in groups of near-equal width: a group of one vector alone would
    // wait for its own accumulators.
    const int64_t vectors = CeilDiv(params_.v_head_dim, kLanes);
    const int64_t groups = CeilDiv(vectors, static_cast<int64_t>(kVectors));
    int64_t vector = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t count = CeilDiv(vectors - vector, groups - g);
      const int64_t column = vector * kLanes;
      vector += count;
      const int64_t missing =
          std::max<int64_t>(0, vector * kLanes - params_.v_head_dim);
      const ValueBlockFn compute =
          kValueBlocks[missing > 0][static_cast<size_t>(block.rows - 1)]
                      [static_cast<size_t>(count - 1)];
      const float* alpha = slot_ + layout_.alpha + block.first;
      int64_t key = all.begin;
      do {
        const int64_t keys = std::min(kKeysPerSum, all.end - key);
        compute(Scores(block.first) + key - begin, layout_.score_stride,
                value + (key - begin) * stride + column, stride, keys, alpha,
                output + column, layout_.output_stride, kLanes - missing,
                TakeAhead(keys));
        alpha = kOnes;
        key += keys;
      } while (key < all.end);
    }
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const KeyRange seen = Clip(ranges_[r], begin, end);
      const auto add = [&](int64_t from, int64_t to) {
        for (int64_t j = from; j < to; ++j) {
          AddValueRow(Scores(r)[j - begin], value + (j - begin) * stride,
                      params_.v_head_dim, Output(r));
        }
      };
      if (all.size() == 0) {
        add(seen.begin, seen.end);
      } else {
        add(seen.begin, all.begin);
        add(all.end, seen.end);
      }
    }
  }

  float* Scores(int64_t r) const {
    return slot_ + layout_.scores + r * layout_.score_stride;
  }
  float* Output(int64_t r) const {
    return slot_ + layout_.output + r * layout_.output_stride;
  }

  const FlashJob& job_;
  const AttentionParams& params_;
  const KernelPlan& plan_;
  const SlotLayout layout_;
  float* const slot_;
  const float scale_;
  const float scale_log2_;  // c above
  int64_t batch_ = 0;
  int64_t kv_head_ = 0;
  int64_t first_row_ = 0;
  int64_t rows_ = 0;
  int64_t num_blocks_ = 0;
  KeyRange span_;
  const float* ahead_ = nullptr;
  const float* ahead_end_ = nullptr;
  const float* q_[kMaxTileRows];
  KeyRange ranges_[kMaxTileRows];
  Block blocks_[kMaxTileRows];
};

// The first words of a slot. `next_key` < 0: no tile is in progress.
struct SlotHeader {
  int64_t next_key;
};

SlotHeader LoadHeader(const float* slot) {
  SlotHeader header;
  std::memcpy(&header, slot, sizeof(header));
  return header;
}

void StoreHeader(float* slot, SlotHeader header) {
  std::memcpy(slot, &header, sizeof(header));
}

void InitSlot(float* slot) { StoreHeader(slot, {.next_key = -1}); }

TileJob::Slice RunTile(const FlashJob& job, int64_t task, float* slot,
                       SliceControl& control) {
  Tile tile(job, task, slot);
  const KeyRange span = tile.span();
  const int64_t tile_kv = job.plan->tile_kv;
  int64_t key = LoadHeader(slot).next_key;
  if (key < 0) {
    tile.Reset();
    key = span.begin / tile_kv * tile_kv;
  }
  while (key < span.end) {
    const int64_t end = std::min(key + tile_kv, span.end);
    tile.Absorb(key, end);
    key = end;
    if (key == span.end) break;
    if (control.ShouldStop()) return TileJob::Slice::kDone;
    if (control.ShouldYield()) {
      StoreHeader(slot, {.next_key = key});
      return TileJob::Slice::kYield;
    }
  }
  tile.Finish();
  InitSlot(slot);
  return TileJob::Slice::kDone;
}

}  // namespace

const FlashKernel& Kernel() {
  static constexpr FlashKernel kKernel = {&PackKeys, &InitSlot, &RunTile};
  return kKernel;
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {

const FlashKernel& GetFlashKernel(Isa isa) {
  switch (isa) {
#if HWY_TARGETS & HWY_AVX3
    case Isa::kAvx512:
      return N_AVX3::Kernel();
#endif
#if HWY_TARGETS & HWY_AVX2
    case Isa::kAvx2:
      return N_AVX2::Kernel();
#endif
    default:
      return HWY_STATIC_DISPATCH(Kernel)();
  }
}

}  // namespace attnd
#endif  // HWY_ONCE
