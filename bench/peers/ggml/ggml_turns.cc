// Runs GGML_OP_FLASH_ATTN_EXT of ggml in the contest with attnd. It uses one
// thread, an f32 query, which ggml requires, and keys and values of the type of
// the case.
#include <ggml-cpu.h>
#include <ggml.h>
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>

#include "bench/peers/turns.h"

namespace attnd::bench {
namespace {

// Memory in huge pages, like large blocks of attnd and NumPy.
class Block {
 public:
  explicit Block(size_t bytes) {
    constexpr size_t kPage = size_t{2} << 20;
    const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    data_ = std::aligned_alloc(kPage, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
    madvise(data_, rounded, MADV_HUGEPAGE);
  }
  ~Block() { std::free(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }

 private:
  void* data_;
};

ggml_type TypeNamed(const std::string& name) {
  if (name == "f32") return GGML_TYPE_F32;
  if (name == "f16") return GGML_TYPE_F16;
  if (name == "bf16") return GGML_TYPE_BF16;
  throw std::invalid_argument("expected the type f32, f16 or bf16, got " +
                              name);
}

class GgmlCase : public Prepared {
 public:
  GgmlCase(const Turns::Json& of, const std::string& folder)
      : q_heads_(of["q_heads"]),
        q_len_(of["q_len"]),
        dim_(of["head_dim"]),
        type_(TypeNamed(of["dtype"])) {
    if (of["backward"]) {
      throw std::invalid_argument("no backward flash attention");
    }
    const int64_t kv_heads = of["kv_heads"];
    const int64_t kv_len = of["kv_len"];
    const bool causal = of["causal"];
    const auto rows = static_cast<size_t>(q_heads_ * q_len_);
    const auto keys = static_cast<size_t>(kv_heads * kv_len);
    const size_t row = static_cast<size_t>(dim_);
    block_ = std::make_unique<Block>(
        rows * row * 8 + 2 * keys * row * ggml_type_size(type_) +
        (causal ? static_cast<size_t>(q_len_ * kv_len) * 2 : 0) + (1 << 20));
    at_ = static_cast<char*>(block_->data());
    context_ = ggml_init(
        {.mem_size = 1 << 20, .mem_buffer = nullptr, .no_alloc = true});
    ggml_tensor* q = Place(
        ggml_new_tensor_3d(context_, GGML_TYPE_F32, dim_, q_len_, q_heads_));
    ggml_tensor* k =
        Place(ggml_new_tensor_3d(context_, type_, dim_, kv_len, kv_heads));
    ggml_tensor* v =
        Place(ggml_new_tensor_3d(context_, type_, dim_, kv_len, kv_heads));
    ReadQuery(folder + "/query", static_cast<float*>(q->data));
    ReadTensor(folder + "/key", k->data, ggml_nbytes(k));
    ReadTensor(folder + "/value", v->data, ggml_nbytes(v));
    ggml_tensor* mask = nullptr;
    if (causal) {
      mask = Place(ggml_new_tensor_2d(context_, GGML_TYPE_F16, kv_len, q_len_));
      auto* shown = static_cast<ggml_fp16_t*>(mask->data);
      const ggml_fp16_t hidden =
          ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity());
      for (int64_t i = 0; i < q_len_; ++i) {
        for (int64_t j = 0; j < kv_len; ++j) {
          shown[i * kv_len + j] = j <= i ? 0 : hidden;
        }
      }
    }
    output_ = ggml_flash_attn_ext(
        context_, q, k, v, mask, 1 / std::sqrt(static_cast<float>(dim_)), 0, 0);
    Place(output_);
    graph_ = ggml_new_graph(context_);
    ggml_build_forward_expand(graph_, output_);
    plan_ = ggml_graph_plan(graph_, 1, nullptr);
    work_ = std::make_unique<Block>(plan_.work_size);
    plan_.work_data = static_cast<uint8_t*>(work_->data());
  }
  ~GgmlCase() override { ggml_free(context_); }

  void Call() override {
    if (ggml_graph_compute(graph_, &plan_) != GGML_STATUS_SUCCESS) {
      throw std::runtime_error("ggml_graph_compute failed");
    }
  }

  // ggml's answer has the shape [rows, heads, head_dim].
  std::vector<float> Answer() override {
    std::vector<float> values(static_cast<size_t>(q_heads_ * q_len_ * dim_));
    const auto* from = static_cast<const float*>(output_->data);
    for (int64_t h = 0; h < q_heads_; ++h) {
      for (int64_t i = 0; i < q_len_; ++i) {
        std::memcpy(&values[static_cast<size_t>((h * q_len_ + i) * dim_)],
                    from + (i * q_heads_ + h) * dim_,
                    static_cast<size_t>(dim_) * sizeof(float));
      }
    }
    return values;
  }

 private:
  ggml_tensor* Place(ggml_tensor* tensor) {
    tensor->data = at_;
    at_ += (ggml_nbytes(tensor) + 63) / 64 * 64;
    return tensor;
  }

  void ReadQuery(const std::string& path, float* to) {
    const auto count = static_cast<size_t>(q_heads_ * q_len_ * dim_);
    if (type_ == GGML_TYPE_F32) return ReadTensor(path, to, count * 4);
    std::vector<uint16_t> halves(count);
    ReadTensor(path, halves.data(), count * 2);
    ggml_get_type_traits(type_)->to_float(halves.data(), to,
                                          static_cast<int64_t>(count));
  }

  int64_t q_heads_, q_len_, dim_;
  ggml_type type_;
  std::unique_ptr<Block> block_, work_;
  char* at_ = nullptr;
  ggml_context* context_ = nullptr;
  ggml_tensor* output_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
  ggml_cplan plan_ = {};
};

}  // namespace
}  // namespace attnd::bench

int main() {
  using attnd::bench::GgmlCase;
  using attnd::bench::Turns;
  try {
    ggml_cpu_init();
    Turns turns;
    turns.prepare = [](const Turns::Json& of, const std::string& folder) {
      return std::make_unique<GgmlCase>(of, folder);
    };
    turns.other = [](const Turns::Json&) -> Turns::Json {
      return {{"version", ggml_version()}};
    };
    turns.Serve();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "ggml_turns: " << error.what() << "\n";
    return 1;
  }
}
