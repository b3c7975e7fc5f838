#include "cost/cost_query.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "core/attention_problem.h"

namespace attnd {
namespace {

constexpr int64_t kDefaultDimensions = 128;

// The axes of a tensor in the order of its layout. The tensors of a ragged
// batch have no batch axis, because its entries are packed along seq.
struct Axes {
  const char* tensor;
  std::vector<NamedSize> sizes;

  TensorSpec Spec(DataType dtype) const {
    TensorSpec spec{.dtype = dtype, .shape = {}};
    for (const NamedSize& size : sizes) spec.shape.push_back(size.value);
    return spec;
  }
};

Axes AxesOf(const char* tensor, const CostQuery& query, const NamedSize& heads,
            const NamedSize& seq, const NamedSize& dim) {
  Axes axes{tensor, {query.batch, heads, seq, dim}};
  auto& sizes = axes.sizes;
  if (query.options.layout == Layout::kBshd) std::swap(sizes[1], sizes[2]);
  if (!query.options.cu_seqlens_q.empty()) sizes.erase(sizes.begin());
  return axes;
}

// Replaces the axis of a tensor, which the core names in `status`, by the size
// that the caller gave. If a whole shape is at fault, it is too large, and the
// error names `length`.
absl::Status WithSizeNames(const absl::Status& status, const Axes& axes,
                           const NamedSize& length) {
  const std::optional<std::string> field = FieldOf(status);
  if (!field) return status;
  const std::string shape = absl::StrCat(axes.tensor, ".shape");
  if (*field == shape) return WithField(status, length.name);
  for (size_t i = 0; i < axes.sizes.size(); ++i) {
    if (*field == absl::StrCat(shape, "[", i, "]")) {
      return WithField(status, axes.sizes[i].name);
    }
  }
  return status;
}

absl::StatusOr<AttentionProblem> ProblemOf(const CostQuery& query) {
  const Axes q =
      AxesOf("query", query, query.num_q_heads, query.q_len, query.head_dim);
  const Axes k =
      AxesOf("key", query, query.num_kv_heads, query.kv_len, query.head_dim);
  const Axes v = AxesOf("value", query, query.num_kv_heads, query.kv_len,
                        query.v_head_dim);
  absl::StatusOr<AttentionProblem> problem = AttentionProblem::Create(
      q.Spec(query.dtype), k.Spec(query.dtype), v.Spec(query.dtype),
      query.options, query.outputs);
  if (problem.ok()) return problem;
  absl::Status status = WithSizeNames(problem.status(), q, query.q_len);
  status = WithSizeNames(status, k, query.kv_len);
  return WithSizeNames(status, v, query.kv_len);
}

}  // namespace

absl::Status CostQuery::CheckSizes() const {
  for (const auto& [value, name] :
       {seq_len, dimensions, batch, num_q_heads, num_kv_heads, q_len, kv_len,
        head_dim, v_head_dim, threads, concurrency}) {
    if (value < 0) {
      return FieldError(name, "a number >= 0", absl::StrCat(value));
    }
  }
  return absl::OkStatus();
}

absl::Status CostQuery::SetDefaults() {
  if (dimensions.value == 0) dimensions.value = kDefaultDimensions;
  for (NamedSize* size : {&batch, &num_q_heads, &threads, &concurrency}) {
    if (size->value == 0) size->value = 1;
  }
  const std::pair<NamedSize*, const NamedSize*> others[] = {
      {&num_kv_heads, &num_q_heads},
      {&q_len, &seq_len},
      {&kv_len, &seq_len},
      {&head_dim, &dimensions},
      {&v_head_dim, &head_dim}};
  for (const auto& [size, other] : others) {
    if (size->value == 0) *size = *other;
  }
  if (q_len.value == 0 || kv_len.value == 0) {
    return FieldError("seq_len", "a number > 0, because q_len or kv_len is 0",
                      "0");
  }
  if (!options.cu_seqlens_q.empty() && batch.value != 1) {
    return FieldError("batch",
                      "1, because cu_seqlens_q and cu_seqlens_k divide one "
                      "sequence into the entries of the batch",
                      absl::StrCat(batch.value));
  }
  return absl::OkStatus();
}

absl::StatusOr<QueryCost> CostOf(const CostQuery& query) {
  ATTND_ASSIGN_OR_RETURN(const AttentionProblem problem, ProblemOf(query));
  const MemoryEstimator estimator(query.machine, query.threads.value);
  QueryCost cost;
  cost.concurrency = query.concurrency.value;
  ATTND_ASSIGN_OR_RETURN(cost.computation, estimator.Estimate(problem));
  // A mask is copied from shared memory, because a client that wrote to it
  // while the kernel runs would change which keys are visible.
  const int64_t copied_bytes = query.transport == Transport::kSharedMemory
                                   ? problem.mask_bytes()
                                   : cost.computation.input_bytes;
  ATTND_ASSIGN_OR_RETURN(
      cost.call, CostOfCall(cost.computation, query.options,
                            {.transport = query.transport,
                             .copied_bytes = copied_bytes,
                             .max_message_bytes = query.max_message_bytes}));
  const std::optional<int64_t> peak_bytes =
      CheckedProduct({cost.call.peak_bytes, cost.concurrency});
  if (!peak_bytes) {
    return WithReason(
        FieldError("concurrency", "peak_bytes that fit a signed 64-bit number",
                   absl::StrCat(cost.concurrency)),
        kInt64RangeReason);
  }
  cost.peak_bytes = *peak_bytes;
  return cost;
}

CostQuery Scaled(const CostQuery& query, double factor) {
  const auto scaled = [factor](int64_t size) {
    return static_cast<int64_t>(
        std::llround(static_cast<double>(size) * factor));
  };
  CostQuery larger = query;
  const int64_t q_len = larger.q_len.value = scaled(query.q_len.value);
  const int64_t kv_len = larger.kv_len.value = scaled(query.kv_len.value);
  AttentionOptions& options = larger.options;
  for (auto* lengths : {&options.query_lengths, &options.key_lengths,
                        &options.cu_seqlens_q, &options.cu_seqlens_k}) {
    std::transform(lengths->begin(), lengths->end(), lengths->begin(), scaled);
  }
  const auto scale_shape = [&](std::vector<int64_t>& shape) {
    const size_t rank = shape.size();
    if (rank >= 1 && shape[rank - 1] != 1) shape[rank - 1] = kv_len;
    if (rank >= 2 && shape[rank - 2] != 1) shape[rank - 2] = q_len;
  };
  if (options.bias) scale_shape(options.bias->shape);
  if (options.mask) scale_shape(options.mask->shape);
  return larger;
}

}  // namespace attnd
