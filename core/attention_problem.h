// Checks an attention call. This is the only place that does: everything after
// it relies on a valid problem. It needs shapes and options, but no elements,
// so a call can be refused before its first element arrives.
#ifndef ATTND_CORE_ATTENTION_PROBLEM_H_
#define ATTND_CORE_ATTENTION_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/attention_params.h"
#include "core/kv_rows.h"
#include "core/tensor_view.h"
#include "core/visibility.h"

namespace attnd {

// Where the elements of a problem's tensors lie. Each tensor is dense, has the
// shape and type that the problem says, and is aligned to the size of its
// elements. `lse` may be null unless the call returns it. `bias` and `mask` may
// be null if the problem has none.
struct AttentionBuffers {
  const void* query = nullptr;  // [batch, num_q_heads, q_len, head_dim]
  const void* key = nullptr;    // [batch, num_kv_heads, kv_len, head_dim]
  const void* value = nullptr;  // [batch, num_kv_heads, kv_len, v_head_dim]
  void* output = nullptr;       // [batch, num_q_heads, q_len, v_head_dim]
  float* lse = nullptr;         // [batch, num_q_heads, q_len]
  const void* bias = nullptr;
  const void* mask = nullptr;  // one byte for each element
};

// Where the tensors of a backward pass lie, by the rules of AttentionBuffers.
// AttentionProblem::CheckGradients must return OK. `output` and `lse` are the
// results of the forward call. Bias and mask are those of the forward call and
// get no gradient.
struct BackwardBuffers {
  const float* query = nullptr;
  const float* key = nullptr;
  const float* value = nullptr;
  const void* bias = nullptr;
  const void* mask = nullptr;
  const float* output = nullptr;
  const float* lse = nullptr;
  const float* grad_output = nullptr;  // has the shape of output
  float* grad_query = nullptr;         // has the shape of query
  float* grad_key = nullptr;
  float* grad_value = nullptr;
};

// An attention call whose shapes and options have been checked. Code that has
// one need not check anything again. Immutable, cheap to copy, and safe to
// share between threads.
//
//   auto problem = AttentionProblem::Create({.shape = {8, 128, 64}},
//                                           {.shape = {2, 512, 64}},
//                                           {.shape = {2, 512, 64}}, {});
class AttentionProblem {
 public:
  // The largest head_dim and v_head_dim. They are limited because the rows,
  // keys and values of a tile must fit the processor's caches.
  static constexpr int64_t kMaxHeadDim = 1024;

  // The most bytes of a tensor if its elements were F32, and the most that 4 *
  // batch * num_q_heads * q_len * kv_len * (head_dim + v_head_dim) may be. Both
  // are so far below the limit of int64 that sums of a problem's bytes, strides
  // and flops cannot overflow. Numbers that are rounded up to whole tiles still
  // can.
  static constexpr int64_t kMaxTensorBytes = int64_t{1} << 60;
  static constexpr int64_t kMaxWork = int64_t{1} << 62;

  // The most batch entries if the options list a length or an offset for each
  // of them. They are limited because each takes memory while the call is
  // checked, which is before memory is reserved for the call.
  static constexpr int64_t kMaxListedEntries = 65536;

  // Checks a call and returns its problem. If the call is invalid, returns
  // INVALID_ARGUMENT that names the field at fault, with reason INT64_RANGE if
  // only the size is at fault.
  //
  // In BHSD the shapes are query [batch, num_q_heads, q_len, head_dim], key
  // [batch, num_kv_heads, kv_len, head_dim] and value [batch, num_kv_heads,
  // kv_len, v_head_dim]. In BSHD the axes of heads and lengths are swapped.
  // Shapes of rank 3 lack batch; shapes of rank 2 lack batch and heads. A
  // ragged batch has rank 3 or 2.
  static absl::StatusOr<AttentionProblem> Create(
      const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
      const AttentionOptions& options, const OutputOptions& outputs = {});

  // Does the same, but accepts a problem of any size, so that its costs can be
  // estimated. Only MemoryEstimator and MakeCostPlan may use the problem unless
  // computable() is true, because its sizes overflow elsewhere.
  static absl::StatusOr<AttentionProblem> CreateOfAnySize(
      const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
      const AttentionOptions& options, const OutputOptions& outputs = {});

  // Returns whether the problem is within kMaxTensorBytes and kMaxWork.
  bool computable() const { return computable_; }

  // Returns OK if gradients of this problem can be computed. They need query,
  // key, value and output of F32, and products in F32. Otherwise returns
  // INVALID_ARGUMENT that names the field at fault.
  absl::Status CheckGradients() const;

  const AttentionParams& params() const { return params_; }
  const Visibility& visibility() const { return visibility_; }

  // Returns the options that the caller gave. Defaults are not resolved in
  // them.
  const AttentionOptions& options() const { return *options_; }

  // Return one number for each query head, or an empty list if params() says
  // that there are none.
  const std::vector<float>& alibi_slopes() const {
    return options_->alibi_slopes;
  }
  const std::vector<float>& sink_logits() const {
    return options_->sink_logits;
  }

  // Return the shapes of the results, which OutputShape and LseShape of
  // base/shape.h define. They have the layout and rank of the query.
  std::vector<int64_t> OutputShape() const;
  std::vector<int64_t> LseShape() const;

  // Return views of dense tensors with the shapes of this problem. If T is
  // std::byte, params() has the type of the elements. `data` may be null only
  // if the shape has no element. A view is of the whole tensor; BatchEntry says
  // at which indices a batch entry begins.
  template <typename T>
  TensorView<T> QueryView(T* data) const {
    return View(data, params_.num_q_heads, params_.q_len, params_.head_dim);
  }
  template <typename T>
  TensorView<T> KeyView(T* data) const {
    return View(data, params_.num_kv_heads, params_.kv_len, params_.head_dim);
  }
  template <typename T>
  TensorView<T> ValueView(T* data) const {
    return View(data, params_.num_kv_heads, params_.kv_len, params_.v_head_dim);
  }
  // Return the rows of a dense K or V at `data`. params() has the type of its
  // elements.
  KvSource KeySource(const void* data) const {
    return {KeyView(static_cast<const std::byte*>(data)), params_.key_dtype};
  }
  KvSource ValueSource(const void* data) const {
    return {ValueView(static_cast<const std::byte*>(data)),
            params_.value_dtype};
  }
  template <typename T>
  TensorView<T> OutputView(T* data) const {
    return View(data, params_.num_q_heads, params_.q_len, params_.v_head_dim);
  }
  // Returns a view of a dense lse. Its shape is [batch, num_q_heads, q_len, 1],
  // and its order in memory is the same in every layout.
  template <typename T>
  TensorView<T> LseView(T* data) const {
    return {data,
            {tensor_batch(), params_.num_q_heads, params_.q_len, 1},
            {params_.num_q_heads * params_.q_len, params_.q_len, 1, 1}};
  }
  // Return views of the shape [batch, num_q_heads, q_len, kv_len], with stride
  // 0 along each axis that is broadcast.
  template <typename T>
  TensorView<T> BiasView(T* data) const {
    return Broadcast(data, options_->bias->shape);
  }
  template <typename T>
  TensorView<T> MaskView(T* data) const {
    return Broadcast(data, options_->mask->shape);
  }

  // Return bytes. They saturate (base/checked_math.h).
  int64_t query_bytes() const;
  int64_t key_bytes() const;
  int64_t value_bytes() const;
  int64_t output_bytes() const;
  int64_t lse_bytes() const;   // even if the call does not return lse
  int64_t bias_bytes() const;  // 0 if there is none
  int64_t mask_bytes() const;  // 0 if there is none
 private:
  AttentionProblem(const AttentionParams& params, int rank, bool computable,
                   std::shared_ptr<const AttentionOptions> options)
      : params_(params),
        options_(std::move(options)),
        visibility_(params, options_),
        rank_(rank),
        computable_(computable) {}

  static absl::StatusOr<AttentionProblem> Check(const TensorSpec& query,
                                                const TensorSpec& key,
                                                const TensorSpec& value,
                                                const AttentionOptions& options,
                                                const OutputOptions& outputs,
                                                bool any_size);

  std::vector<int64_t> QueryShape() const;

  int64_t tensor_batch() const { return params_.ragged ? 1 : params_.batch; }

  template <typename T>
  TensorView<T> View(T* data, int64_t heads, int64_t seq, int64_t dim) const {
    const int64_t entry = heads * seq * dim;
    if (params_.layout == Layout::kBshd) {
      return {data,
              {tensor_batch(), heads, seq, dim},
              {entry, dim, heads * dim, 1}};
    }
    return {
        data, {tensor_batch(), heads, seq, dim}, {entry, seq * dim, dim, 1}};
  }

  template <typename T>
  TensorView<T> Broadcast(T* data, const std::vector<int64_t>& shape) const {
    TensorView<T> view{
        data,
        {tensor_batch(), params_.num_q_heads, params_.q_len, params_.kv_len},
        {}};
    int64_t stride = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      const int64_t extent = shape[shape.size() - 1 - i];
      view.strides[3 - i] = extent == 1 ? 0 : stride;
      stride *= extent;
    }
    return view;
  }

  AttentionParams params_;
  std::shared_ptr<const AttentionOptions> options_;
  Visibility visibility_;
  int rank_;
  bool computable_;
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_PROBLEM_H_
