// What one attention call is, as plain values: no pointers, no behaviour.
#ifndef ATTND_CORE_ATTENTION_PARAMS_H_
#define ATTND_CORE_ATTENTION_PARAMS_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace attnd {

// The type of a tensor's elements. Sums are f32 whatever it is.
enum class DataType {
  kF32,
  kF16,   // IEEE 754 binary16
  kBF16,  // the upper half of an f32
};

// Bytes of one element.
constexpr int64_t SizeOf(DataType type) {
  return type == DataType::kF32 ? 4 : 2;
}

// Key j is seen by query row i when j <= p(i).
enum class Causal {
  kNone,
  kTopLeft,      // p(i) = i
  kBottomRight,  // p(i) = i + key length - query length of the entry
};

// The order of the axes in memory.
enum class Layout {
  kBhsd,  // [batch, heads, seq, dim]
  kBshd,  // [batch, seq, heads, dim]
};

// The arithmetic of the two matrix products.
enum class Precision {
  kAuto,  // bf16 where every input is and the machine multiplies it natively;
          // of f32, three bf16 for each number where that is faster
  kF32,
  kBF16,  // inputs and weights rounded to bf16, whatever their type
};

// A tensor as its sender describes it: dense and row-major.
struct TensorSpec {
  DataType dtype = DataType::kF32;
  std::vector<int64_t> shape;
};

// What a caller may say beside the tensors, by the names and with the defaults
// and formulas of AttentionOptions in the contract.
struct AttentionOptions {
  std::optional<float> scale = {};  // 1 / sqrt(head_dim) where unset; finite
  std::optional<float> temperature = {};  // 1 where unset; finite and > 0
  int64_t block_size = 0;                 // keys in a tile; 0 = automatic
  Layout layout = Layout::kBhsd;
  Causal causal = Causal::kNone;
  std::vector<int64_t> query_offsets = {};  // none, one, or one an entry
  std::optional<int64_t> window_left = {};
  std::optional<int64_t> window_right = {};
  std::optional<float> logits_soft_cap = {};
  std::vector<float> alibi_slopes = {};  // none, or one a query head
  std::vector<float> sink_logits = {};   // none, or one a query head
  std::optional<TensorSpec> bias = {};
  // The shape of a mask of one byte an element; 0 hides.
  std::optional<std::vector<int64_t>> mask_shape = {};
  std::vector<int64_t> query_lengths = {};  // none, or one an entry
  std::vector<int64_t> key_lengths = {};
  std::vector<int64_t> cu_seqlens_q = {};  // none, or entries + 1 offsets
  std::vector<int64_t> cu_seqlens_k = {};
  bool return_lse = false;
  std::optional<DataType> output_dtype = {};  // the query's where unset
  Precision precision = Precision::kAuto;
};

// A problem's numbers, checked and with every default resolved. Lengths count
// tokens. Made by AttentionProblem::Create only. What differs from one batch
// entry to the next is asked of Mask.
struct AttentionParams {
  int64_t batch = 1;        // entries; of a ragged batch those packed along seq
  int64_t num_q_heads = 1;  // a multiple of num_kv_heads
  int64_t num_kv_heads = 1;  // q head h reads kv head h / HeadsPerGroup()
  int64_t q_len = 0;         // the tensors' extents along seq: the longest that
  int64_t kv_len = 0;        // an entry can be; of a ragged batch all together
  int64_t head_dim = 1;
  int64_t v_head_dim = 1;
  DataType query_dtype = DataType::kF32;
  DataType key_dtype = DataType::kF32;
  DataType value_dtype = DataType::kF32;
  DataType output_dtype = DataType::kF32;
  DataType bias_dtype = DataType::kF32;
  Layout layout = Layout::kBhsd;
  Precision precision = Precision::kAuto;
  float score_scale = 1;   // scale / temperature; multiplies dot(q, k)
  float soft_cap = 0;      // 0 = none
  int64_t block_size = 0;  // 0 = automatic
  Causal causal = Causal::kNone;
  bool ragged = false;
  bool has_bias = false;
  bool has_mask = false;
  bool has_alibi = false;
  bool has_sinks = false;
  bool return_lse = false;

  // Query heads that share one kv head. 0 heads make groups of 1.
  int64_t HeadsPerGroup() const {
    return num_kv_heads > 0 ? num_q_heads / num_kv_heads : 1;
  }

  // Whether scores are more than scaled dot products.
  bool AdjustsScores() const { return soft_cap != 0 || has_alibi || has_bias; }
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_PARAMS_H_
