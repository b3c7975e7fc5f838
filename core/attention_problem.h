// The one place where an attention call is checked. Knows shapes and options,
// never bytes: a problem is known good before a single element is received.
#ifndef ATTND_CORE_ATTENTION_PROBLEM_H_
#define ATTND_CORE_ATTENTION_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/attention_params.h"
#include "core/mask.h"
#include "core/tensor_view.h"

namespace attnd {

// Where the elements are; each as many as the problem's shapes say, dense, in
// the types that its params say, aligned to their size. `lse` may be null where
// it was not asked for, `bias` and `mask` where the problem has none.
struct AttentionBuffers {
  const void* query = nullptr;  // [batch, num_q_heads, q_len, head_dim]
  const void* key = nullptr;    // [batch, num_kv_heads, kv_len, head_dim]
  const void* value = nullptr;  // [batch, num_kv_heads, kv_len, v_head_dim]
  void* output = nullptr;       // [batch, num_q_heads, q_len, v_head_dim]
  float* lse = nullptr;         // [batch, num_q_heads, q_len]
  const void* bias = nullptr;
  const void* mask = nullptr;  // one byte an element
};

// The same for the gradients of a problem whose query, key, value and output
// are f32. `output` and `lse` are what the forward call answered; bias and mask
// are as there, and get no gradient.
struct BackwardBuffers {
  const float* query = nullptr;
  const float* key = nullptr;
  const float* value = nullptr;
  const void* bias = nullptr;
  const void* mask = nullptr;
  const float* output = nullptr;
  const float* lse = nullptr;
  const float* grad_output = nullptr;  // the shape of output
  float* grad_query = nullptr;         // the shape of query, and so on
  float* grad_key = nullptr;
  float* grad_value = nullptr;
};

// A checked problem. Whoever holds one may compute with it and need not look
// at it again. Immutable and cheap to copy; safe to share between threads.
//
//   auto problem = AttentionProblem::Create({.shape = {8, 128, 64}},
//                                           {.shape = {2, 512, 64}},
//                                           {.shape = {2, 512, 64}}, {});
class AttentionProblem {
 public:
  // The largest head_dim and v_head_dim; one row of tiles has to fit caches.
  static constexpr int64_t kMaxHeadDim = 1024;

  // The most bytes of one tensor, and the most scalar steps of a problem. Far
  // enough below overflow that sums of a problem's bytes, strides, pairs and
  // flops need no further check; what is padded to tiles does.
  static constexpr int64_t kMaxTensorBytes = int64_t{1} << 60;
  static constexpr int64_t kMaxWork = int64_t{1} << 62;

  // The most entries of a batch whose entries differ, for each takes memory
  // before a call is admitted.
  static constexpr int64_t kMaxListedEntries = 65536;

  // In BHSD the shapes are query [batch, num_q_heads, q_len, head_dim], key
  // [batch, num_kv_heads, kv_len, head_dim], value [batch, num_kv_heads,
  // kv_len, v_head_dim]; in BSHD heads and lengths change places. Rank 3 lacks
  // batch, rank 2 batch and heads. A ragged batch has rank 3 or 2.
  // INVALID_ARGUMENT that names the field where anything does not fit, with
  // reason INT64_RANGE where only the size is at fault.
  static absl::StatusOr<AttentionProblem> Create(
      const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
      const AttentionOptions& options);

  const AttentionParams& params() const { return params_; }
  const Mask& mask() const { return mask_; }

  // As they were asked for.
  const AttentionOptions& options() const { return *options_; }

  // One a query head; empty where params() says that there are none.
  const std::vector<float>& alibi_slopes() const {
    return options_->alibi_slopes;
  }
  const std::vector<float>& sink_logits() const {
    return options_->sink_logits;
  }

  // The shapes of the answers, in the layout and rank that the query came in.
  std::vector<int64_t> OutputShape() const;  // query's with v_head_dim last
  std::vector<int64_t> LseShape() const;     // [batch, num_q_heads, q_len]

  // Views of dense memory in this problem's shapes, as many elements as they
  // say, of the type that params() says where T is std::byte. `data` may be
  // null only where a shape holds no element. Batch, rows and keys are the
  // tensors': BatchEntry says where an entry lies.
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
  template <typename T>
  TensorView<T> OutputView(T* data) const {
    return View(data, params_.num_q_heads, params_.q_len, params_.v_head_dim);
  }
  // [batch, num_q_heads, q_len, 1] whatever the layout.
  template <typename T>
  TensorView<T> LseView(T* data) const {
    return {data,
            {tensor_batch(), params_.num_q_heads, params_.q_len, 1},
            {params_.num_q_heads * params_.q_len, params_.q_len, 1, 1}};
  }
  // [batch, num_q_heads, q_len, kv_len], with stride 0 along what is broadcast.
  template <typename T>
  TensorView<T> BiasView(T* data) const {
    return Broadcast(data, options_->bias->shape);
  }
  template <typename T>
  TensorView<T> MaskView(T* data) const {
    return Broadcast(data, *options_->mask_shape);
  }

  int64_t query_bytes() const;
  int64_t key_bytes() const;
  int64_t value_bytes() const;
  int64_t output_bytes() const;
  int64_t lse_bytes() const;   // whether asked for or not
  int64_t bias_bytes() const;  // 0 where there is none
  int64_t mask_bytes() const;

 private:
  AttentionProblem(const AttentionParams& params, int rank,
                   std::shared_ptr<const AttentionOptions> options)
      : params_(params),
        options_(std::move(options)),
        mask_(params, options_),
        rank_(rank) {}

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
  Mask mask_;
  int rank_;
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_PROBLEM_H_
