// Attention in the order of the formula: all scores of a row, their softmax,
// and the weighted sum of the values. Every score of the call stays in memory.
// The loops are plain; this file is compiled once for each instruction set so
// that the compiler vectorises them.
//
// Rows are independent, so each row's scores become weights and are used while
// they are in cache. This is the fastest form of the baseline that still holds
// all scores. It lacks reuse: every row reads all of K and V.
#include "core/naive_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/checked_math.h"
#include "base/status_macros.h"
#include "core/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/kernels/naive_attention.cc"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/targets.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Returns e^x for x <= 0, or 0 if that is below the smallest normal number. A
// NaN stays NaN. The error is 2 ulp and what the rounding of x log2(e) causes.
//
// x log2(e) = n + f with |f| <= 1/2. Adding 1.5 * 2^23 leaves n in the low bits
// of the mantissa. These are read as an integer because this file is compiled
// with -fassociative-math: the compiler would drop a number that is first added
// and then subtracted. The polynomial is 2^f.
inline float ExpNonPositive(float x) {
  constexpr float kRound = 12582912.0F;
  constexpr float kLog2E = 1.44269504F;
  const auto shifted = std::bit_cast<int32_t>(x * kLog2E + kRound);
  const int32_t n = shifted - std::bit_cast<int32_t>(kRound);
  const float f = x * kLog2E - static_cast<float>(n);
  float p = 1.326484722e-3F;
  p = p * f + 9.671485983e-3F;
  p = p * f + 5.550733581e-2F;
  p = p * f + 2.402225137e-1F;
  p = p * f + 6.931470037e-1F;
  p = p * f + 1.0F;
  const uint32_t power = (static_cast<uint32_t>(n) + 127U) << 23U;
  return x < -87.3F ? 0.0F : p * std::bit_cast<float>(power);
}

// The two loops over keys take this many at once. Their sums are independent,
// so the processor overlaps them, and query and output are read fewer times.
constexpr int64_t kKeysAtOnce = 4;

float Dot(const float* __restrict a, const float* __restrict b, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

// scores[j] = scale * dot(query, keys[j]).
void Scores(const float* __restrict query, const float* __restrict keys,
            int64_t count, int64_t size, float scale,
            float* __restrict scores) {
  int64_t j = 0;
  for (; j + kKeysAtOnce <= count; j += kKeysAtOnce) {
    const float* __restrict key0 = keys + j * size;
    const float* __restrict key1 = key0 + size;
    const float* __restrict key2 = key1 + size;
    const float* __restrict key3 = key2 + size;
    float sum0 = 0;
    float sum1 = 0;
    float sum2 = 0;
    float sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (int64_t i = 0; i < size; ++i) {
      sum0 += query[i] * key0[i];
      sum1 += query[i] * key1[i];
      sum2 += query[i] * key2[i];
      sum3 += query[i] * key3[i];
    }
    scores[j] = scale * sum0;
    scores[j + 1] = scale * sum1;
    scores[j + 2] = scale * sum2;
    scores[j + 3] = scale * sum3;
  }
  for (; j < count; ++j) scores[j] = scale * Dot(query, keys + j * size, size);
}

// Returns the largest number of x, leaving out NaN.
float Largest(const float* __restrict x, int64_t size) {
  float largest = -kInfinity;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < size; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

bool HasNan(const float* x, int64_t size) {
  return std::any_of(x, x + size, [](float value) { return value != value; });
}

// Replaces each x by e^(x - largest). Returns the sum of the results.
float ExpAndSum(float* __restrict x, float largest, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    x[i] = ExpNonPositive(x[i] - largest);
    sum += x[i];
  }
  return sum;
}

// output = sum_j weights[j] * values[j].
void WeightedSum(const float* __restrict weights,
                 const float* __restrict values, int64_t count, int64_t size,
                 float* __restrict output) {
  std::fill_n(output, size, 0.0F);
  int64_t j = 0;
  for (; j + kKeysAtOnce <= count; j += kKeysAtOnce) {
    const float* __restrict value = values + j * size;
    const float weight0 = weights[j];
    const float weight1 = weights[j + 1];
    const float weight2 = weights[j + 2];
    const float weight3 = weights[j + 3];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      output[i] += weight0 * value[i] + weight1 * value[i + size] +
                   weight2 * value[i + 2 * size] +
                   weight3 * value[i + 3 * size];
    }
  }
  for (; j < count; ++j) {
    const float* __restrict value = values + j * size;
    const float weight = weights[j];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) output[i] += weight * value[i];
  }
}

void Scale(float factor, float* __restrict x, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) x[i] *= factor;
}

}  // namespace

// Computes one row over the `keys` keys that it sees. Shapes: key
// [keys, head_dim], value [keys, v_head_dim], scores [keys], output
// [v_head_dim]. Returns the row's lse.
float NaiveRow(const AttentionParams& params, const float* query,
               const float* key, const float* value, int64_t keys,
               float* scores, float* output) {
  Scores(query, key, keys, params.head_dim, params.score_scale, scores);
  const float largest = Largest(scores, keys);
  // Infinite scores are rare, so scores are searched for NaN only then.
  const bool has_nan = std::isinf(largest) && HasNan(scores, keys);
  if (largest == -kInfinity && !has_nan) {
    std::fill_n(output, params.v_head_dim, 0.0F);
    return -kInfinity;
  }
  const float sum = ExpAndSum(scores, largest, keys);
  WeightedSum(scores, value, keys, params.v_head_dim, output);
  Scale(1 / sum, output, params.v_head_dim);
  if (largest == kInfinity && !has_nan) return kInfinity;
  return largest + std::log(sum);
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {
namespace {

using RowFunction = decltype(&HWY_STATIC_DISPATCH(NaiveRow));

// Each task computes some rows of one head.
class NaiveJob : public TileJob {
 public:
  NaiveJob(const AttentionProblem& problem, const AttentionBuffers& buffers,
           const AttentionEngine& engine, float* scores)
      : params_(problem.params()),
        visibility_(problem.visibility()),
        row_(ATTND_FUNCTION(engine.machine().isa, NaiveRow)),
        threads_(engine.threads()),
        query_(problem.QueryView(static_cast<const float*>(buffers.query))),
        key_(problem.KeySource(buffers.key)),
        value_(problem.ValueSource(buffers.value)),
        output_(problem.OutputView(static_cast<float*>(buffers.output))),
        lse_(problem.LseView(params_.return_lse ? buffers.lse : nullptr)),
        scores_(scores) {
    // A task takes about 100 us, so that there are tasks for all workers.
    constexpr int64_t kStepsPerTask = 1 << 20;
    const int64_t row_steps = std::max<int64_t>(params_.kv_len, 1) *
                              (params_.head_dim + params_.v_head_dim);
    rows_per_task_ = std::clamp<int64_t>(kStepsPerTask / row_steps, 1,
                                         std::max<int64_t>(params_.q_len, 1));
    tasks_per_head_ = CeilDiv(params_.q_len, rows_per_task_);
  }

  std::vector<Phase> Phases() const override {
    return {{.tasks = params_.batch * params_.num_q_heads * tasks_per_head_,
             .slots = threads_}};
  }

  Slice Run(int64_t /*phase*/, int64_t task, int64_t /*slot*/,
            SliceControl& control) override {
    const int64_t batch_head = task / tasks_per_head_;
    const int64_t batch = batch_head / params_.num_q_heads;
    const int64_t head = batch_head % params_.num_q_heads;
    const int64_t kv_head = head / params_.HeadsPerGroup();
    const int64_t begin = task % tasks_per_head_ * rows_per_task_;
    const int64_t end = std::min(begin + rows_per_task_, params_.q_len);
    const BatchEntry entry = visibility_.Entry(batch);
    // A dense tensor has all rows of an entry in one place.
    const auto first_row = [&](const KvSource& source, const KeyRange& range) {
      return reinterpret_cast<const float*>(
          source.Rows(entry, kv_head, range.begin).first);
    };
    for (int64_t i = begin; i < end && !control.ShouldStop(); ++i) {
      const KeyRange range = entry.VisibleRange(i);
      const float lse =
          row_(params_, query_.Row(batch, head, i), first_row(key_, range),
               first_row(value_, range), range.size(),
               scores_ + (batch_head * params_.q_len + i) * params_.kv_len,
               output_.Row(batch, head, i));
      if (lse_.data != nullptr) *lse_.Row(batch, head, i) = lse;
    }
    return Slice::kDone;
  }

 private:
  const AttentionParams params_;
  const Visibility visibility_;
  const RowFunction row_;
  const int64_t threads_;
  const TensorView<const float> query_;
  const KvSource key_;
  const KvSource value_;
  const TensorView<float> output_;
  const TensorView<float> lse_;
  float* const scores_;  // [batch, num_q_heads, q_len, kv_len]
  int64_t rows_per_task_ = 1;
  int64_t tasks_per_head_ = 0;
};

}  // namespace

int64_t NaiveScoreBytes(const AttentionProblem& problem) {
  const AttentionParams& params = problem.params();
  if (!params.ragged) {
    return SaturatingProduct({params.batch, params.num_q_heads, params.q_len,
                              params.kv_len, int64_t{sizeof(float)}});
  }
  int64_t pairs = 0;
  for (int64_t b = 0; b < params.batch; ++b) {
    const BatchEntry entry = problem.visibility().Entry(b);
    pairs =
        SaturatingSum({pairs, SaturatingProduct({entry.q_len, entry.kv_len})});
  }
  return SaturatingProduct({pairs, params.num_q_heads, int64_t{sizeof(float)}});
}

absl::StatusOr<RunStats> NaiveAttention(AttentionEngine& engine,
                                        const AttentionProblem& problem,
                                        const AttentionBuffers& buffers,
                                        const StopSignal* stop) {
  const AttentionParams& params = problem.params();
  const int64_t score_bytes = NaiveScoreBytes(problem);
  ATTND_ASSIGN_OR_RETURN(const Workspace scores,
                         Workspace::Reserve(score_bytes));
  NaiveJob job(problem, buffers, engine, scores.floats());
  JobTimes times;
  ATTND_RETURN_IF_ERROR(engine.scheduler().Run(&job, stop, &times));
  RunStats stats;
  stats.isa = engine.machine().isa;
  stats.kernel = "naive";
  stats.tile_q = 1;
  stats.tile_kv = params.kv_len;
  stats.threads = engine.threads();
  stats.queue_time = times.queued;
  stats.compute_time = times.running;
  stats.flops = 2 * (params.head_dim + params.v_head_dim) * params.num_q_heads *
                problem.visibility().VisiblePairs();
  stats.workspace_bytes = score_bytes;
  return stats;
}

}  // namespace attnd
#endif  // HWY_ONCE
