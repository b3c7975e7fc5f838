#include "core/reference_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

namespace attnd {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double FromF16(uint16_t bits) {
  const double sign = (bits & 0x8000U) != 0 ? -1 : 1;
  const auto exponent = static_cast<int>((bits >> 10U) & 31U);
  const auto fraction = static_cast<int>(bits & 1023U);
  if (exponent == 31) {
    return fraction == 0 ? sign * kInfinity
                         : std::numeric_limits<double>::quiet_NaN();
  }
  return exponent == 0 ? sign * std::ldexp(fraction, -24)
                       : sign * std::ldexp(1024 + fraction, exponent - 25);
}

// Returns one element of a tensor of `type`.
double ElementAt(const TensorView<const std::byte>& tensor, DataType type,
                 int64_t batch, int64_t head, int64_t seq, int64_t dim) {
  return ReferenceElement(
      tensor.data, type,
      tensor.Offset(batch, head, seq) + dim * tensor.strides[3]);
}

const std::byte* Bytes(const void* data) {
  return static_cast<const std::byte*>(data);
}

// Which keys the rows of one batch entry see by position and lengths, and where
// the entry lies in the tensors. This is written from the contract and does not
// use the class Visibility, because tests compare the two.
class ReferenceEntry {
 public:
  ReferenceEntry(const AttentionProblem& problem, int64_t entry)
      : options_(problem.options()) {
    const AttentionParams& params = problem.params();
    const auto at = [entry](const std::vector<int64_t>& list, int64_t plus) {
      return list[static_cast<size_t>(entry + plus)];
    };
    place_.batch = entry;
    place_.q_len = params.q_len;
    place_.kv_extent = params.kv_len;
    if (params.ragged) {
      place_.batch = 0;
      place_.q_begin = at(options_.cu_seqlens_q, 0);
      place_.kv_begin = at(options_.cu_seqlens_k, 0);
      place_.q_len = at(options_.cu_seqlens_q, 1) - place_.q_begin;
      place_.kv_extent = at(options_.cu_seqlens_k, 1) - place_.kv_begin;
    }
    query_length_ = options_.query_lengths.empty()
                        ? place_.q_len
                        : at(options_.query_lengths, 0);
    key_length_ = options_.key_lengths.empty() ? place_.kv_extent
                                               : at(options_.key_lengths, 0);
    if (options_.query_offsets.size() == 1) {
      shift_ = options_.query_offsets[0];
    } else if (!options_.query_offsets.empty()) {
      shift_ = at(options_.query_offsets, 0);
    } else if (options_.causal == Causal::kBottomRight) {
      shift_ = key_length_ - query_length_;
    }
  }

  // Returns where the entry lies in the tensors and how many rows and keys it
  // has there. The members that say which keys a row sees are not set, because
  // Sees() answers that here.
  const BatchEntry& place() const { return place_; }

  int64_t Position(int64_t i) const { return i + shift_; }

  bool Sees(int64_t i, int64_t j) const {
    const int64_t ahead = j - Position(i);
    return i < query_length_ && j < key_length_ &&
           (options_.causal == Causal::kNone || ahead <= 0) &&
           (!options_.window_left || -ahead <= *options_.window_left) &&
           (!options_.window_right || ahead <= *options_.window_right);
  }

 private:
  const AttentionOptions& options_;
  BatchEntry place_;
  int64_t query_length_ = 0;
  int64_t key_length_ = 0;
  int64_t shift_ = 0;
};

}  // namespace

double ReferenceElement(const void* data, DataType type, int64_t index) {
  if (type == DataType::kF32) {
    return double{static_cast<const float*>(data)[index]};
  }
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  if (type == DataType::kF16) return FromF16(bits);
  return double{std::bit_cast<float>(uint32_t{bits} << 16U)};
}

ReferenceRow ReferenceWeights(const AttentionProblem& problem,
                              const AttentionBuffers& inputs, int64_t entry,
                              int64_t head, int64_t q_row) {
  const AttentionParams& params = problem.params();
  const ReferenceEntry visible(problem, entry);
  const BatchEntry& place = visible.place();
  const int64_t batch = place.batch;
  const int64_t kv_head = head / params.HeadsPerGroup();
  const auto query = problem.QueryView(Bytes(inputs.query));
  const KvSource keys = problem.KeySource(inputs.key);

  ReferenceRow row;
  bool has_weight = false;
  bool has_nan = false;
  // The largest score is subtracted from all scores so that no exp overflows. A
  // NaN is never the largest, but it makes the sum below NaN.
  double largest = -kInfinity;
  for (int64_t j = 0; j < place.kv_extent; ++j) {
    if (!visible.Sees(q_row, j)) continue;
    if (params.has_mask) {
      const TensorView<const std::byte> mask =
          problem.MaskView(Bytes(inputs.mask));
      const std::byte* mask_row = mask.Row(batch, head, q_row);
      if (mask_row[j * mask.strides[3]] == std::byte{0}) continue;
    }
    double bias = 0;
    if (params.has_bias) {
      bias = ElementAt(problem.BiasView(Bytes(inputs.bias)), params.bias_dtype,
                       batch, head, q_row, j);
      if (bias == -kInfinity) continue;
    }
    ReferenceKey seen{.index = j};
    const KvRows key = keys.Rows(place, kv_head, j);
    for (int64_t d = 0; d < params.head_dim; ++d) {
      const double product = ElementAt(query, params.query_dtype, batch, head,
                                       place.q_begin + q_row, d) *
                             ReferenceElement(key.first, key.type, d);
      seen.dot += product;
      seen.dot_magnitude += std::abs(product);
    }
    seen.dot *= double{params.score_scale};
    seen.dot_magnitude *= std::abs(double{params.score_scale});
    seen.score = seen.dot;
    if (params.soft_cap != 0) {
      const double cap{params.soft_cap};
      seen.score = cap * std::tanh(seen.dot / cap);
    }
    if (params.has_alibi) {
      const double slope{problem.alibi_slopes()[static_cast<size_t>(head)]};
      const double distance =
          std::abs(static_cast<double>(visible.Position(q_row) - j));
      seen.score -= slope * distance;
      seen.added_magnitude += std::abs(slope * distance);
    }
    if (params.has_bias) {
      seen.score += bias;
      seen.added_magnitude += std::abs(bias);
    }
    row.keys.push_back(seen);
    if (seen.score > largest) largest = seen.score;
    has_weight |= seen.score != -kInfinity;
    has_nan |= std::isnan(seen.score);
  }

  const double sink =
      params.has_sinks
          ? double{problem.sink_logits()[static_cast<size_t>(head)]}
          : -kInfinity;
  if (!has_weight) return {.keys = {}, .lse = sink};

  largest = std::max(largest, sink);
  double sum = std::exp(sink - largest);
  for (ReferenceKey& seen : row.keys) {
    seen.weight = std::exp(seen.score - largest);
    sum += seen.weight;
  }
  for (ReferenceKey& seen : row.keys) seen.weight /= sum;
  // With a score of +inf, the formula says ln(inf) = inf, although inf - inf
  // made the sum NaN.
  row.lse =
      largest == kInfinity && !has_nan ? kInfinity : largest + std::log(sum);
  return row;
}

void ReferenceOutput(const AttentionProblem& problem,
                     const AttentionBuffers& inputs, int64_t entry,
                     int64_t head, const ReferenceRow& row, double* output) {
  const AttentionParams& params = problem.params();
  const ReferenceEntry visible(problem, entry);
  const int64_t kv_head = head / params.HeadsPerGroup();
  const KvSource values = problem.ValueSource(inputs.value);
  std::fill_n(output, params.v_head_dim, 0.0);
  for (const ReferenceKey& seen : row.keys) {
    const KvRows value = values.Rows(visible.place(), kv_head, seen.index);
    for (int64_t d = 0; d < params.v_head_dim; ++d) {
      output[d] += seen.weight * ReferenceElement(value.first, value.type, d);
    }
  }
}

void ReferenceAttentionRow(const AttentionProblem& problem,
                           const AttentionBuffers& inputs, int64_t entry,
                           int64_t head, int64_t q_row, double* output,
                           double* lse) {
  const ReferenceRow row =
      ReferenceWeights(problem, inputs, entry, head, q_row);
  ReferenceOutput(problem, inputs, entry, head, row, output);
  *lse = row.lse;
}

void ReferenceAttention(const AttentionProblem& problem,
                        const AttentionBuffers& inputs, double* output,
                        double* lse) {
  const AttentionParams& params = problem.params();
  const TensorView<double> out = problem.OutputView(output);
  for (int64_t b = 0; b < params.batch; ++b) {
    const BatchEntry place = ReferenceEntry(problem, b).place();
    for (int64_t h = 0; h < params.num_q_heads; ++h) {
      for (int64_t i = 0; i < place.q_len; ++i) {
        const int64_t row = place.q_begin + i;
        ReferenceAttentionRow(
            problem, inputs, b, h, i, out.Row(place.batch, h, row),
            lse + (place.batch * params.num_q_heads + h) * params.q_len + row);
      }
    }
  }
}

void ReferenceBackward(const AttentionProblem& problem,
                       const BackwardBuffers& inputs, double* grad_query,
                       double* grad_key, double* grad_value) {
  const AttentionParams& params = problem.params();
  const AttentionBuffers forward = {.query = inputs.query,
                                    .key = inputs.key,
                                    .value = inputs.value,
                                    .bias = inputs.bias,
                                    .mask = inputs.mask};
  const auto clear = [](double* to, int64_t f32_bytes) {
    std::fill_n(to, f32_bytes / SizeOf(DataType::kF32), 0.0);
  };
  clear(grad_query, problem.query_bytes());
  clear(grad_key, problem.key_bytes());
  clear(grad_value, problem.value_bytes());
  for (int64_t b = 0; b < params.batch; ++b) {
    const BatchEntry place = ReferenceEntry(problem, b).place();
    for (int64_t h = 0; h < params.num_q_heads; ++h) {
      const int64_t kv_head = h / params.HeadsPerGroup();
      for (int64_t i = 0; i < place.q_len; ++i) {
        const ReferenceRow row = ReferenceWeights(problem, forward, b, h, i);
        const auto at_row = [&](auto view) {
          return view.Row(place.batch, h, place.q_begin + i);
        };
        // These return the gradient of a key or value, and the key or value.
        const auto grad_of = [&](auto view, const ReferenceKey& seen) {
          return view.Row(place.batch, kv_head, place.kv_begin + seen.index);
        };
        const auto row_of = [&](const KvSource& source,
                                const ReferenceKey& seen) {
          return reinterpret_cast<const float*>(
              source.Rows(place, kv_head, seen.index).first);
        };
        const float* grad_out = at_row(problem.OutputView(inputs.grad_output));
        const float* q = at_row(problem.QueryView(inputs.query));
        double* grad_q = at_row(problem.QueryView(grad_query));

        // The gradient of each weight, and the weighted mean of these.
        std::vector<double> grad_weights;
        double mean = 0;
        for (const ReferenceKey& seen : row.keys) {
          const float* v = row_of(problem.ValueSource(inputs.value), seen);
          double* grad_v = grad_of(problem.ValueView(grad_value), seen);
          double grad_weight = 0;
          for (int64_t d = 0; d < params.v_head_dim; ++d) {
            grad_weight += double{grad_out[d]} * double{v[d]};
            grad_v[d] += seen.weight * double{grad_out[d]};
          }
          grad_weights.push_back(grad_weight);
          mean += seen.weight * grad_weight;
        }
        for (size_t n = 0; n < row.keys.size(); ++n) {
          const ReferenceKey& seen = row.keys[n];
          double grad_dot = seen.weight * (grad_weights[n] - mean);
          if (params.soft_cap != 0) {
            const double tanh = std::tanh(seen.dot / double{params.soft_cap});
            grad_dot *= 1 - tanh * tanh;
          }
          grad_dot *= double{params.score_scale};
          const float* k = row_of(problem.KeySource(inputs.key), seen);
          double* grad_k = grad_of(problem.KeyView(grad_key), seen);
          for (int64_t d = 0; d < params.head_dim; ++d) {
            grad_q[d] += grad_dot * double{k[d]};
            grad_k[d] += grad_dot * double{q[d]};
          }
        }
      }
    }
  }
}

}  // namespace attnd
