// What one attention call is, as plain values: no pointers, no behaviour.
#ifndef ATTND_CORE_ATTENTION_PARAMS_H_
#define ATTND_CORE_ATTENTION_PARAMS_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace attnd {

enum class DataType { kF32 };

// Bytes of one element.
constexpr int64_t SizeOf(DataType) { return 4; }

// Key j is seen by query row i when j <= p(i).
enum class Causal {
  kNone,
  kTopLeft,      // p(i) = i
  kBottomRight,  // p(i) = i + kv_len - q_len
};

// What a caller may say beside the tensors. Defaults are those of the contract.
struct AttentionOptions {
  std::optional<float> scale = {};  // 1 / sqrt(head_dim) where unset; finite
  std::optional<float> temperature = {};  // 1 where unset; finite and > 0
  int64_t block_size = 0;                 // keys in a tile; 0 = automatic
  Causal causal = Causal::kNone;
  bool return_lse = false;
};

// A problem's numbers, checked and with every default resolved. Lengths count
// tokens. Made by AttentionProblem::Create only.
struct AttentionParams {
  int64_t batch = 1;
  int64_t num_q_heads = 1;   // a multiple of num_kv_heads
  int64_t num_kv_heads = 1;  // q head h reads kv head h / HeadsPerGroup()
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 1;
  int64_t v_head_dim = 1;
  DataType dtype = DataType::kF32;
  float score_scale = 1;   // scale / temperature; multiplies dot(q, k)
  int64_t block_size = 0;  // 0 = automatic
  Causal causal = Causal::kNone;
  bool return_lse = false;

  // Query heads that share one kv head. 0 heads make groups of 1.
  int64_t HeadsPerGroup() const {
    return num_kv_heads > 0 ? num_q_heads / num_kv_heads : 1;
  }
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_PARAMS_H_
