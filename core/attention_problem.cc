#include "core/attention_problem.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/checked_math.h"
#include "core/field_error.h"

namespace attnd {
namespace {

enum Axis { kBatch, kHeads, kSeq, kDim };

// A tensor's four extents, those it lacks being 1, and how to name them in the
// rank that its sender used.
struct Extents {
  absl::string_view name;
  int rank = 0;
  std::array<int64_t, 4> of{1, 1, 1, 1};

  std::string ShapePath() const { return absl::StrCat(name, ".shape"); }
  std::string AxisPath(Axis axis) const {
    return absl::StrCat(name, ".shape[", axis - (4 - rank), "]");
  }
  absl::Status Refuse(Axis axis, const std::string& expected) const {
    return FieldError(AxisPath(axis), expected, absl::StrCat(of[axis]));
  }
};

// `expected_rank` 0 lets every rank through that the contract knows.
absl::StatusOr<Extents> ParseExtents(absl::string_view name,
                                     const TensorSpec& spec,
                                     int expected_rank) {
  Extents extents{.name = name};
  const size_t rank = spec.shape.size();
  if (expected_rank == 0 && (rank < 2 || rank > 4)) {
    return FieldError(extents.ShapePath(), "rank 4, 3 or 2",
                      absl::StrCat("rank ", rank));
  }
  if (expected_rank != 0 && rank != static_cast<size_t>(expected_rank)) {
    return FieldError(extents.ShapePath(),
                      absl::StrCat("the query's rank, ", expected_rank),
                      absl::StrCat("rank ", rank));
  }
  extents.rank = static_cast<int>(rank);
  std::copy(spec.shape.begin(), spec.shape.end(),
            extents.of.end() - extents.rank);
  for (const Axis axis : {kBatch, kHeads, kSeq, kDim}) {
    if (extents.of[axis] < 0) {
      return extents.Refuse(axis, "an extent >= 0");
    }
  }
  return extents;
}

absl::Status CheckHeadDim(const Extents& tensor) {
  const int64_t dim = tensor.of[kDim];
  if (dim >= 1 && dim <= AttentionProblem::kMaxHeadDim) {
    return absl::OkStatus();
  }
  return tensor.Refuse(kDim,
                       absl::StrCat("1 to ", AttentionProblem::kMaxHeadDim));
}

// `tensor` must have along `axis` what `other` has.
absl::Status CheckSame(const Extents& tensor, const Extents& other, Axis axis,
                       absl::string_view axis_name) {
  if (tensor.of[axis] == other.of[axis]) return absl::OkStatus();
  return tensor.Refuse(axis, absl::StrCat(other.of[axis], " (", axis_name,
                                          " of ", other.name, ")"));
}

absl::Status CheckHeads(const Extents& query, const Extents& key) {
  const int64_t q_heads = query.of[kHeads];
  const int64_t kv_heads = key.of[kHeads];
  if (kv_heads == 0 ? q_heads == 0 : q_heads % kv_heads == 0) {
    return absl::OkStatus();
  }
  return query.Refuse(
      kHeads, absl::StrCat("a multiple of the ", kv_heads, " kv heads"));
}

// The product with empty axes counted as 1, so that strides fit as well where
// a tensor holds no element.
std::optional<int64_t> ProductOfExtents(std::initializer_list<int64_t> extents,
                                        int64_t factor) {
  std::optional<int64_t> product = factor;
  for (const int64_t extent : extents) {
    product = CheckedProduct({*product, std::max<int64_t>(extent, 1)});
    if (!product) break;
  }
  return product;
}

absl::Status TooLarge(const Extents& tensor, absl::string_view what,
                      int64_t limit) {
  std::string shape = "[";
  for (int axis = 4 - tensor.rank; axis < 4; ++axis) {
    absl::StrAppend(&shape, tensor.of[static_cast<size_t>(axis)],
                    axis == 3 ? "]" : ", ");
  }
  return WithReason(
      FieldError(tensor.ShapePath(), absl::StrCat(what, " of at most ", limit),
                 shape),
      kInt64RangeReason);
}

absl::Status CheckSizes(const Extents& query, const Extents& key,
                        const Extents& value) {
  const int64_t head_dim = query.of[kDim];
  const int64_t v_head_dim = value.of[kDim];
  const int64_t element_bytes = SizeOf(DataType::kF32);
  for (const Extents* tensor : {&query, &key, &value}) {
    // The output has the query's rows, each v_head_dim wide.
    const int64_t width =
        tensor == &query ? std::max(head_dim, v_head_dim) : tensor->of[kDim];
    const std::optional<int64_t> bytes = ProductOfExtents(
        {tensor->of[kBatch], tensor->of[kHeads], tensor->of[kSeq], width},
        element_bytes);
    if (!bytes || *bytes > AttentionProblem::kMaxTensorBytes) {
      return TooLarge(*tensor, "bytes", AttentionProblem::kMaxTensorBytes);
    }
  }
  const std::optional<int64_t> work =
      ProductOfExtents({query.of[kBatch], query.of[kHeads], query.of[kSeq],
                        key.of[kSeq], head_dim + v_head_dim},
                       element_bytes);
  if (!work || *work > AttentionProblem::kMaxWork) {
    return TooLarge(
        key, "4 * batch * q_heads * q_len * kv_len * (head_dim + v_head_dim)",
        AttentionProblem::kMaxWork);
  }
  return absl::OkStatus();
}

absl::StatusOr<float> ScoreScale(const AttentionOptions& options,
                                 int64_t head_dim) {
  const float scale = options.scale.value_or(
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim))));
  if (!std::isfinite(scale)) {
    return FieldError("options.scale", "a finite number", absl::StrCat(scale));
  }
  const float temperature = options.temperature.value_or(1.0F);
  if (!std::isfinite(temperature) || temperature <= 0) {
    return FieldError("options.temperature", "a finite number > 0",
                      absl::StrCat(temperature));
  }
  const float score_scale = scale / temperature;
  if (!std::isfinite(score_scale)) {
    return FieldError(options.scale ? "options.scale" : "options.temperature",
                      "a finite scale / temperature",
                      absl::StrCat(scale, " / ", temperature));
  }
  return score_scale;
}

}  // namespace

absl::StatusOr<AttentionProblem> AttentionProblem::Create(
    const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
    const AttentionOptions& options) {
  const absl::StatusOr<Extents> q = ParseExtents("query", query, 0);
  if (!q.ok()) return q.status();
  const absl::StatusOr<Extents> k = ParseExtents("key", key, q->rank);
  if (!k.ok()) return k.status();
  const absl::StatusOr<Extents> v = ParseExtents("value", value, q->rank);
  if (!v.ok()) return v.status();

  absl::Status status = CheckHeadDim(*q);
  status.Update(CheckSame(*k, *q, kBatch, "batch"));
  status.Update(CheckHeads(*q, *k));
  status.Update(CheckSame(*k, *q, kDim, "head_dim"));
  status.Update(CheckSame(*v, *k, kBatch, "batch"));
  status.Update(CheckSame(*v, *k, kHeads, "kv heads"));
  status.Update(CheckSame(*v, *k, kSeq, "kv_len"));
  status.Update(CheckHeadDim(*v));
  if (!status.ok()) return status;
  status = CheckSizes(*q, *k, *v);
  if (!status.ok()) return status;

  const absl::StatusOr<float> score_scale = ScoreScale(options, q->of[kDim]);
  if (!score_scale.ok()) return score_scale.status();
  if (options.block_size < 0) {
    return FieldError("options.block_size", "a number >= 0",
                      absl::StrCat(options.block_size));
  }

  return AttentionProblem({.batch = q->of[kBatch],
                           .num_q_heads = q->of[kHeads],
                           .num_kv_heads = k->of[kHeads],
                           .q_len = q->of[kSeq],
                           .kv_len = k->of[kSeq],
                           .head_dim = q->of[kDim],
                           .v_head_dim = v->of[kDim],
                           .dtype = query.dtype,
                           .score_scale = *score_scale,
                           .block_size = options.block_size,
                           .causal = options.causal,
                           .return_lse = options.return_lse},
                          q->rank);
}

std::vector<int64_t> AttentionProblem::OutputShape() const {
  const std::array<int64_t, 4> shape{params_.batch, params_.num_q_heads,
                                     params_.q_len, params_.v_head_dim};
  return {shape.end() - rank_, shape.end()};
}

std::vector<int64_t> AttentionProblem::LseShape() const {
  std::vector<int64_t> shape = OutputShape();
  shape.pop_back();
  return shape;
}

TensorView<const float> AttentionProblem::QueryView(const float* data) const {
  return TensorView<const float>::Dense(
      data,
      {params_.batch, params_.num_q_heads, params_.q_len, params_.head_dim});
}

TensorView<const float> AttentionProblem::KeyView(const float* data) const {
  return TensorView<const float>::Dense(
      data,
      {params_.batch, params_.num_kv_heads, params_.kv_len, params_.head_dim});
}

TensorView<const float> AttentionProblem::ValueView(const float* data) const {
  return TensorView<const float>::Dense(
      data, {params_.batch, params_.num_kv_heads, params_.kv_len,
             params_.v_head_dim});
}

TensorView<float> AttentionProblem::OutputView(float* data) const {
  return TensorView<float>::Dense(data, {params_.batch, params_.num_q_heads,
                                         params_.q_len, params_.v_head_dim});
}

TensorView<float> AttentionProblem::LseView(float* data) const {
  return TensorView<float>::Dense(
      data, {params_.batch, params_.num_q_heads, params_.q_len, 1});
}

int64_t AttentionProblem::query_bytes() const {
  return params_.batch * params_.num_q_heads * params_.q_len *
         params_.head_dim * SizeOf(params_.dtype);
}

int64_t AttentionProblem::key_bytes() const {
  return params_.batch * params_.num_kv_heads * params_.kv_len *
         params_.head_dim * SizeOf(params_.dtype);
}

int64_t AttentionProblem::value_bytes() const {
  return params_.batch * params_.num_kv_heads * params_.kv_len *
         params_.v_head_dim * SizeOf(params_.dtype);
}

int64_t AttentionProblem::output_bytes() const {
  return params_.batch * params_.num_q_heads * params_.q_len *
         params_.v_head_dim * SizeOf(params_.dtype);
}

int64_t AttentionProblem::lse_bytes() const {
  return params_.batch * params_.num_q_heads * params_.q_len *
         int64_t{sizeof(float)};
}

}  // namespace attnd
