#include "cost/cost_query.h"

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/checked_math.h"
#include "base/field_error.h"
#include "base/status_macros.h"

namespace attnd {
namespace {

constexpr int64_t kDefaultDimensions = 128;

// The sizes of a tensor in the order of its layout. The tensors of a ragged
// batch have no batch axis, because its entries are packed along seq.
using Axes = absl::InlinedVector<NamedSize, 4>;

Axes AxesOf(const CostQuery& query, const NamedSize& heads,
            const NamedSize& seq, const NamedSize& dim) {
  Axes axes = {query.batch, heads, seq, dim};
  if (query.options.layout == Layout::kBshd) std::swap(axes[1], axes[2]);
  if (!query.options.cu_seqlens_q.empty()) axes.erase(axes.begin());
  return axes;
}

Axes QueryAxes(const CostQuery& query) {
  return AxesOf(query, query.num_q_heads, query.q_len, query.head_dim);
}

Axes KeyAxes(const CostQuery& query) {
  return AxesOf(query, query.num_kv_heads, query.kv_len, query.head_dim);
}

Axes ValueAxes(const CostQuery& query) {
  return AxesOf(query, query.num_kv_heads, query.kv_len, query.v_head_dim);
}

TensorSpec SpecOf(DataType dtype, const Axes& axes) {
  TensorSpec spec{.dtype = dtype, .shape = {}};
  spec.shape.reserve(axes.size());
  for (const NamedSize& size : axes) spec.shape.push_back(size.value);
  return spec;
}

// Replaces the axis of a tensor, which the core names in `status`, by the size
// that the caller gave.
absl::Status WithSizeNames(const absl::Status& status, absl::string_view tensor,
                           const Axes& axes) {
  const std::optional<std::string> field = FieldOf(status);
  if (!field) return status;
  for (size_t i = 0; i < axes.size(); ++i) {
    if (*field == absl::StrCat(tensor, ".shape[", i, "]")) {
      return WithField(status, axes[i].name);
    }
  }
  return status;
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

absl::StatusOr<AttentionProblem> ProblemOf(const CostQuery& query) {
  const Axes q = QueryAxes(query);
  const Axes k = KeyAxes(query);
  const Axes v = ValueAxes(query);
  absl::StatusOr<AttentionProblem> problem = AttentionProblem::CreateOfAnySize(
      SpecOf(query.dtype, q), SpecOf(query.dtype, k), SpecOf(query.dtype, v),
      query.options, query.outputs);
  if (problem.ok()) return problem;
  absl::Status status = WithSizeNames(problem.status(), "query", q);
  status = WithSizeNames(status, "key", k);
  return WithSizeNames(status, "value", v);
}

InputShapes InputShapesOf(const CostQuery& query) {
  return {.query = SpecOf(query.dtype, QueryAxes(query)).shape,
          .key = SpecOf(query.dtype, KeyAxes(query)).shape,
          .value = SpecOf(query.dtype, ValueAxes(query)).shape};
}

absl::StatusOr<QueryCost> CostOf(const CostQuery& query) {
  ATTND_ASSIGN_OR_RETURN(const AttentionProblem problem, ProblemOf(query));
  const MemoryEstimator estimator(query.machine, query.threads.value);
  QueryCost cost;
  cost.computation = estimator.Estimate(problem);
  // A mask is copied from shared memory, because a client that wrote to it
  // while the kernel runs would change which keys are visible.
  const int64_t copied_bytes = query.transport == Transport::kSharedMemory
                                   ? problem.mask_bytes()
                                   : cost.computation.input_bytes;
  cost.call = CostOfCall(cost.computation, query.options,
                         {.transport = query.transport,
                          .copied_bytes = copied_bytes,
                          .max_message_bytes = query.max_message_bytes});
  cost.concurrency = query.concurrency.value;
  cost.peak_bytes = SaturatingProduct({cost.call.peak_bytes, cost.concurrency});
  // The other figures are parts of these.
  cost.in_int64_range =
      problem.computable() &&
      std::max({cost.computation.naive_bytes, cost.computation.flash_bytes,
                cost.computation.flops, cost.peak_bytes}) < kMaxInt64;
  return cost;
}

absl::Status CheckInt64Range(const CostQuery& query, const QueryCost& cost) {
  if (cost.in_int64_range) return absl::OkStatus();
  ATTND_ASSIGN_OR_RETURN(const AttentionProblem problem, ProblemOf(query));
  // All figures of a computable problem fit, apart from those that grow with
  // the number of its threads or of the calls.
  const auto reduce = [](std::initializer_list<NamedSize> sizes,
                         std::string_view expected) {
    const NamedSize largest = std::max(
        sizes, [](const auto& a, const auto& b) { return a.value < b.value; });
    return WithReason(
        FieldError(largest.name, expected, absl::StrCat(largest.value)),
        kInt64RangeReason);
  };
  if (problem.computable()) {
    return reduce({query.threads, query.concurrency},
                  "a smaller number, because the calls need more memory than a "
                  "64-bit number can count");
  }
  return reduce({query.batch, query.num_q_heads, query.num_kv_heads,
                 query.q_len, query.kv_len},
                "a smaller number, because the problem is too large to be "
                "computed");
}

}  // namespace attnd
