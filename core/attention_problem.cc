#include "core/attention_problem.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/checked_math.h"
#include "base/field_error.h"
#include "base/status_macros.h"

namespace attnd {
namespace {

enum Axis { kBatch, kHeads, kSeq, kDim };
constexpr Axis kAxes[] = {kBatch, kHeads, kSeq, kDim};

// The four extents of a tensor, and their names in the sender's rank and
// layout. An extent that the tensor lacks is 1.
struct Extents {
  absl::string_view name;
  int rank = 0;
  Layout layout = Layout::kBhsd;
  std::array<int64_t, 4> of{1, 1, 1, 1};

  // Returns the index of `axis` in the sender's shape. Negative if it has none.
  int IndexOf(Axis axis) const {
    constexpr int kBshdOrder[] = {0, 2, 1, 3};
    if (layout == Layout::kBhsd) return axis - (4 - rank);
    if (rank == 2) return axis == kSeq ? 0 : axis == kDim ? 1 : -1;
    return kBshdOrder[axis] - (4 - rank);
  }
  std::string ShapePath() const { return absl::StrCat(name, ".shape"); }
  std::string AxisPath(Axis axis) const {
    return absl::StrCat(name, ".shape[", IndexOf(axis), "]");
  }
  absl::Status Refuse(Axis axis, const std::string& expected) const {
    return FieldError(AxisPath(axis), expected, absl::StrCat(of[axis]));
  }
};

absl::Status CheckFloat(absl::string_view path, DataType type) {
  if (type != DataType::kBool) return absl::OkStatus();
  return FieldError(absl::StrCat(path, ".dtype"), "F32, F16 or BF16",
                    NameOf(type));
}

// Checks the shape of a tensor and returns its extents. `expected_rank` is 0 if
// the tensor may have any rank of the contract.
absl::StatusOr<Extents> ParseExtents(absl::string_view name,
                                     const TensorSpec& spec, Layout layout,
                                     int expected_rank) {
  ATTND_RETURN_IF_ERROR(CheckFloat(name, spec.dtype));
  Extents extents{.name = name, .layout = layout};
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
  for (const Axis axis : kAxes) {
    const int index = extents.IndexOf(axis);
    if (index < 0) continue;
    extents.of[axis] = spec.shape[static_cast<size_t>(index)];
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

// Checks that `tensor` has the same extent along `axis` as `other`.
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

// Returns the product of `extents` and `factor`, or nullopt if it does not fit
// an int64. An empty axis counts as 1, so that strides fit even if a tensor has
// no element.
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
  std::vector<int64_t> shape(static_cast<size_t>(tensor.rank));
  for (const Axis axis : kAxes) {
    const int index = tensor.IndexOf(axis);
    if (index >= 0) shape[static_cast<size_t>(index)] = tensor.of[axis];
  }
  return WithReason(
      FieldError(tensor.ShapePath(), absl::StrCat(what, " of at most ", limit),
                 ShapeText(shape)),
      kInt64RangeReason);
}

// The limits of a problem's size.
enum class SizeLimit { kNone, kQueryBytes, kKeyBytes, kValueBytes, kWork };

// Returns a limit that the problem exceeds.
SizeLimit ExceededLimit(const Extents& query, const Extents& key,
                        const Extents& value) {
  const int64_t head_dim = query.of[kDim];
  const int64_t v_head_dim = value.of[kDim];
  const int64_t element_bytes = SizeOf(DataType::kF32);
  const std::tuple<SizeLimit, const Extents&, int64_t> tensors[] = {
      // The output has the query's rows, each v_head_dim wide.
      {SizeLimit::kQueryBytes, query, std::max(head_dim, v_head_dim)},
      {SizeLimit::kKeyBytes, key, head_dim},
      {SizeLimit::kValueBytes, value, v_head_dim}};
  for (const auto& [limit, tensor, width] : tensors) {
    const std::optional<int64_t> bytes = ProductOfExtents(
        {tensor.of[kBatch], tensor.of[kHeads], tensor.of[kSeq], width},
        element_bytes);
    if (!bytes || *bytes > AttentionProblem::kMaxTensorBytes) return limit;
  }
  const std::optional<int64_t> work =
      ProductOfExtents({query.of[kBatch], query.of[kHeads], query.of[kSeq],
                        key.of[kSeq], head_dim + v_head_dim},
                       element_bytes);
  return work && *work <= AttentionProblem::kMaxWork ? SizeLimit::kNone
                                                     : SizeLimit::kWork;
}

absl::Status CheckSizes(const Extents& query, const Extents& key,
                        const Extents& value) {
  constexpr int64_t kBytes = AttentionProblem::kMaxTensorBytes;
  switch (ExceededLimit(query, key, value)) {
    case SizeLimit::kNone:
      break;
    case SizeLimit::kQueryBytes:
      return TooLarge(query, "bytes", kBytes);
    case SizeLimit::kKeyBytes:
      return TooLarge(key, "bytes", kBytes);
    case SizeLimit::kValueBytes:
      return TooLarge(value, "bytes", kBytes);
    case SizeLimit::kWork:
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

// Returns an error for the first element of a list for which `good` is false.
template <typename T, typename Good>
absl::Status CheckElements(const std::vector<T>& list, absl::string_view field,
                           std::string_view expected, const Good& good) {
  const auto bad = std::find_if_not(list.begin(), list.end(), good);
  if (bad == list.end()) return absl::OkStatus();
  return FieldError(
      absl::StrCat("options.", field, "[", bad - list.begin(), "]"), expected,
      absl::StrCat(*bad));
}

// Checks that a list is empty or has `count` elements.
template <typename T>
absl::Status CheckCount(const std::vector<T>& list, absl::string_view field,
                        int64_t count, absl::string_view what) {
  if (list.empty() || static_cast<int64_t>(list.size()) == count) {
    return absl::OkStatus();
  }
  return FieldError(absl::StrCat("options.", field),
                    absl::StrCat("none, or ", count, ", one per ", what),
                    absl::StrCat(list.size()));
}

absl::Status CheckScores(const AttentionOptions& options, int64_t q_heads) {
  if (const auto cap = options.logits_soft_cap;
      cap && !(std::isfinite(*cap) && *cap > 0)) {
    return FieldError("options.logits_soft_cap", "a finite number > 0",
                      absl::StrCat(*cap));
  }
  absl::Status status =
      CheckCount(options.alibi_slopes, "alibi_slopes", q_heads, "query head");
  status.Update(
      CheckElements(options.alibi_slopes, "alibi_slopes", "a finite number",
                    [](float slope) { return std::isfinite(slope); }));
  status.Update(
      CheckCount(options.sink_logits, "sink_logits", q_heads, "query head"));
  status.Update(CheckElements(
      options.sink_logits, "sink_logits", "a finite number or -inf",
      [](float sink) {
        return sink < std::numeric_limits<float>::infinity();  // and not NaN
      }));
  return status;
}

// Checks that a tensor of shape `shape` can be broadcast to the scores. Axes
// align from the right. Each has length 1 or the length of that axis of the
// scores.
absl::Status CheckBroadcast(const std::vector<int64_t>& shape,
                            absl::string_view field, const Extents& query,
                            int64_t kv_len) {
  const std::string path = absl::StrCat("options.", field, ".shape");
  if (shape.size() > 4) {
    return FieldError(path, "rank 4 or less",
                      absl::StrCat("rank ", shape.size()));
  }
  constexpr absl::string_view kNames[] = {"batch", "q_heads", "q_len",
                                          "kv_len"};
  const int64_t full[] = {query.of[kBatch], query.of[kHeads], query.of[kSeq],
                          kv_len};
  for (size_t i = 0; i < shape.size(); ++i) {
    const size_t axis = 4 - shape.size() + i;
    if (shape[i] == 1 || shape[i] == full[axis]) continue;
    return FieldError(
        absl::StrCat(path, "[", i, "]"),
        absl::StrCat("1 or ", full[axis], " (", kNames[axis], ")"),
        absl::StrCat(shape[i]));
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const std::vector<int64_t>& lengths,
                          absl::string_view field, int64_t batch,
                          int64_t longest) {
  if (lengths.empty()) return absl::OkStatus();
  absl::Status status = CheckCount(lengths, field, batch, "batch entry");
  status.Update(
      CheckElements(lengths, field, absl::StrCat("0 to ", longest),
                    [longest](int64_t n) { return n >= 0 && n <= longest; }));
  return status;
}

absl::Status CheckOffsets(const std::vector<int64_t>& offsets,
                          absl::string_view field, int64_t seq) {
  const auto at = [&](size_t i) {
    return absl::StrCat("options.", field, "[", i, "]");
  };
  if (offsets.front() != 0) {
    return FieldError(at(0), "0", absl::StrCat(offsets.front()));
  }
  for (size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] < offsets[i - 1]) {
      return FieldError(at(i), absl::StrCat("no less than ", offsets[i - 1]),
                        absl::StrCat(offsets[i]));
    }
  }
  if (offsets.back() != seq) {
    return FieldError(at(offsets.size() - 1),
                      absl::StrCat(seq, " (the length of seq)"),
                      absl::StrCat(offsets.back()));
  }
  return absl::OkStatus();
}

absl::Status CheckRagged(const AttentionOptions& options, const Extents& query,
                         const Extents& key) {
  const size_t count = options.cu_seqlens_q.size();
  if (options.cu_seqlens_k.size() != count) {
    return FieldError("options.cu_seqlens_k",
                      absl::StrCat("as many offsets as cu_seqlens_q, ", count),
                      absl::StrCat(options.cu_seqlens_k.size()));
  }
  if (query.rank == 4) {
    return FieldError(query.ShapePath(), "rank 2 or 3 beside cu_seqlens_q",
                      "rank 4");
  }
  absl::Status status =
      CheckOffsets(options.cu_seqlens_q, "cu_seqlens_q", query.of[kSeq]);
  status.Update(
      CheckOffsets(options.cu_seqlens_k, "cu_seqlens_k", key.of[kSeq]));
  const std::pair<bool, absl::string_view> excluded[] = {
      {!options.query_lengths.empty(), "query_lengths"},
      {!options.key_lengths.empty(), "key_lengths"},
      {options.bias.has_value(), "bias"},
      {options.mask.has_value(), "mask"}};
  for (const auto& [used, field] : excluded) {
    if (used) {
      status.Update(FieldError(absl::StrCat("options.", field),
                               "nothing beside cu_seqlens_q", "a value"));
    }
  }
  return status;
}

// Limits the number of entries, because the call keeps lists with a number for
// each entry and plans each entry.
absl::Status CheckListedEntries(const AttentionOptions& options,
                                int64_t batch) {
  const std::pair<size_t, absl::string_view> lists[] = {
      {options.cu_seqlens_q.size(), "cu_seqlens_q"},
      {options.query_lengths.size(), "query_lengths"},
      {options.key_lengths.size(), "key_lengths"},
      {options.query_offsets.size(), "query_offsets"}};
  for (const auto& [size, field] : lists) {
    if (size > 1 && batch > AttentionProblem::kMaxListedEntries) {
      return FieldError(
          absl::StrCat("options.", field),
          absl::StrCat("at most ", AttentionProblem::kMaxListedEntries,
                       " batch entries"),
          absl::StrCat(batch));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckQueryOffsets(const std::vector<int64_t>& offsets,
                               int64_t batch) {
  absl::Status status;
  if (offsets.size() != 1) {
    status = CheckCount(offsets, "query_offsets", batch,
                        "batch entry (or one for all)");
  }
  status.Update(CheckElements(
      offsets, "query_offsets",
      absl::StrCat("a number within +-", Visibility::kMaxPosition),
      [](int64_t n) {
        return n >= -Visibility::kMaxPosition && n <= Visibility::kMaxPosition;
      }));
  return status;
}

// Checks all options that hide keys from rows, and bias. `batch` counts
// entries.
absl::Status CheckVisibility(const AttentionOptions& options,
                             const Extents& query, const Extents& key,
                             int64_t batch) {
  ATTND_RETURN_IF_ERROR(CheckListedEntries(options, batch));
  absl::Status status;
  if (!options.cu_seqlens_q.empty() || !options.cu_seqlens_k.empty()) {
    if (options.cu_seqlens_q.empty()) {
      return FieldError("options.cu_seqlens_q", "offsets beside cu_seqlens_k",
                        "none");
    }
    status.Update(CheckRagged(options, query, key));
  }
  status.Update(CheckLengths(options.query_lengths, "query_lengths", batch,
                             query.of[kSeq]));
  status.Update(
      CheckLengths(options.key_lengths, "key_lengths", batch, key.of[kSeq]));
  if (!options.query_offsets.empty()) {
    status.Update(CheckQueryOffsets(options.query_offsets, batch));
  }
  const std::pair<std::optional<int64_t>, absl::string_view> windows[] = {
      {options.window_left, "window_left"},
      {options.window_right, "window_right"}};
  for (const auto& [window, field] : windows) {
    if (window.value_or(0) < 0) {
      status.Update(FieldError(absl::StrCat("options.", field), "a number >= 0",
                               absl::StrCat(*window)));
    }
  }
  const int64_t kv_len = key.of[kSeq];
  if (options.bias) {
    status.Update(CheckFloat("options.bias", options.bias->dtype));
    status.Update(CheckBroadcast(options.bias->shape, "bias", query, kv_len));
  }
  if (options.mask) {
    if (options.mask->dtype != DataType::kBool) {
      status.Update(FieldError("options.mask.dtype", "BOOL",
                               NameOf(options.mask->dtype)));
    }
    status.Update(CheckBroadcast(options.mask->shape, "mask", query, kv_len));
  }
  return status;
}

// Returns the bytes of a tensor, or 0 if there is none.
int64_t BytesOf(const std::optional<TensorSpec>& tensor) {
  if (!tensor) return 0;
  const int64_t count = ElementCount(tensor->shape).value_or(kMaxInt64);
  return SaturatingProduct({count, SizeOf(tensor->dtype)});
}

}  // namespace

absl::StatusOr<AttentionProblem> AttentionProblem::Create(
    const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
    const AttentionOptions& options, const OutputOptions& outputs) {
  return Check(query, key, value, options, outputs, /*any_size=*/false);
}

absl::StatusOr<AttentionProblem> AttentionProblem::CreateOfAnySize(
    const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
    const AttentionOptions& options, const OutputOptions& outputs) {
  return Check(query, key, value, options, outputs, /*any_size=*/true);
}

absl::StatusOr<AttentionProblem> AttentionProblem::Check(
    const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
    const AttentionOptions& options, const OutputOptions& outputs,
    bool any_size) {
  const Layout layout = options.layout;
  ATTND_ASSIGN_OR_RETURN(const Extents q,
                         ParseExtents("query", query, layout, 0));
  ATTND_ASSIGN_OR_RETURN(const Extents k,
                         ParseExtents("key", key, layout, q.rank));
  ATTND_ASSIGN_OR_RETURN(const Extents v,
                         ParseExtents("value", value, layout, q.rank));

  absl::Status status = CheckHeadDim(q);
  status.Update(CheckSame(k, q, kBatch, "batch"));
  status.Update(CheckHeads(q, k));
  status.Update(CheckSame(k, q, kDim, "head_dim"));
  status.Update(CheckSame(v, k, kBatch, "batch"));
  status.Update(CheckSame(v, k, kHeads, "kv heads"));
  status.Update(CheckSame(v, k, kSeq, "kv_len"));
  status.Update(CheckHeadDim(v));
  ATTND_RETURN_IF_ERROR(status);
  if (!any_size) ATTND_RETURN_IF_ERROR(CheckSizes(q, k, v));

  ATTND_ASSIGN_OR_RETURN(const float score_scale,
                         ScoreScale(options, q.of[kDim]));
  if (options.block_size < 0) {
    return FieldError("options.block_size", "a number >= 0",
                      absl::StrCat(options.block_size));
  }
  const bool ragged = !options.cu_seqlens_q.empty();
  const int64_t batch =
      ragged ? static_cast<int64_t>(options.cu_seqlens_q.size()) - 1
             : q.of[kBatch];
  status = CheckScores(options, q.of[kHeads]);
  status.Update(CheckVisibility(options, q, k, batch));
  const DataType output_dtype = outputs.output_dtype.value_or(query.dtype);
  if (output_dtype == DataType::kBool) {
    status.Update(FieldError("options.output_dtype", "F32, F16 or BF16",
                             NameOf(output_dtype)));
  }
  ATTND_RETURN_IF_ERROR(status);

  return AttentionProblem(
      {.batch = batch,
       .num_q_heads = q.of[kHeads],
       .num_kv_heads = k.of[kHeads],
       .q_len = q.of[kSeq],
       .kv_len = k.of[kSeq],
       .head_dim = q.of[kDim],
       .v_head_dim = v.of[kDim],
       .query_dtype = query.dtype,
       .key_dtype = key.dtype,
       .value_dtype = value.dtype,
       .output_dtype = output_dtype,
       .bias_dtype = options.bias ? options.bias->dtype : DataType::kF32,
       .layout = layout,
       .precision = options.precision,
       .score_scale = score_scale,
       .soft_cap = options.logits_soft_cap.value_or(0.0F),
       .block_size = options.block_size,
       .causal = options.causal,
       .ragged = ragged,
       .has_bias = options.bias.has_value(),
       .has_mask = options.mask.has_value(),
       .has_alibi = !options.alibi_slopes.empty(),
       .has_sinks = !options.sink_logits.empty(),
       .return_lse = outputs.return_lse},
      q.rank, ExceededLimit(q, k, v) == SizeLimit::kNone,
      std::make_shared<const AttentionOptions>(options));
}

absl::Status AttentionProblem::CheckGradients() const {
  const std::pair<absl::string_view, DataType> types[] = {
      {"query.dtype", params_.query_dtype},
      {"key.dtype", params_.key_dtype},
      {"value.dtype", params_.value_dtype},
      {"options.output_dtype", params_.output_dtype}};
  for (const auto& [path, type] : types) {
    if (type == DataType::kF32) continue;
    return FieldError({path.data(), path.size()},
                      "F32 because gradients are computed in F32",
                      NameOf(type));
  }
  if (params_.precision != Precision::kBF16) return absl::OkStatus();
  return FieldError("options.precision",
                    "AUTO or F32 because gradients are computed in F32",
                    NameOf(params_.precision));
}

std::vector<int64_t> AttentionProblem::QueryShape() const {
  std::vector<int64_t> shape = {params_.batch, params_.num_q_heads,
                                params_.q_len, params_.head_dim};
  // Rank 2 lacks heads, so its last two axes are seq and dim in every layout.
  if (params_.layout == Layout::kBshd && rank_ > 2) {
    std::swap(shape[1], shape[2]);
  }
  shape.erase(shape.begin(), shape.end() - rank_);
  return shape;
}

std::vector<int64_t> AttentionProblem::OutputShape() const {
  return attnd::OutputShape(QueryShape(), {params_.v_head_dim});
}

std::vector<int64_t> AttentionProblem::LseShape() const {
  return attnd::LseShape(QueryShape(), params_.layout);
}

int64_t AttentionProblem::query_bytes() const {
  return SaturatingProduct({tensor_batch(), params_.num_q_heads, params_.q_len,
                            params_.head_dim, SizeOf(params_.query_dtype)});
}

int64_t AttentionProblem::key_bytes() const {
  return SaturatingProduct({tensor_batch(), params_.num_kv_heads,
                            params_.kv_len, params_.head_dim,
                            SizeOf(params_.key_dtype)});
}

int64_t AttentionProblem::value_bytes() const {
  return SaturatingProduct({tensor_batch(), params_.num_kv_heads,
                            params_.kv_len, params_.v_head_dim,
                            SizeOf(params_.value_dtype)});
}

int64_t AttentionProblem::output_bytes() const {
  return SaturatingProduct({tensor_batch(), params_.num_q_heads, params_.q_len,
                            params_.v_head_dim, SizeOf(params_.output_dtype)});
}

int64_t AttentionProblem::lse_bytes() const {
  return SaturatingProduct({tensor_batch(), params_.num_q_heads, params_.q_len,
                            int64_t{sizeof(float)}});
}

int64_t AttentionProblem::bias_bytes() const { return BytesOf(options_->bias); }

int64_t AttentionProblem::mask_bytes() const { return BytesOf(options_->mask); }

}  // namespace attnd
