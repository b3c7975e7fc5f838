#include "bench/core_groups.h"

#include <cstdint>
#include <string>
#include <vector>

#include "core/machine.h"

namespace attnd::bench {
namespace {

Case Square(const std::string& name, int64_t heads, int64_t len,
            int64_t head_dim, int threads = 1) {
  return {.name = name,
          .q_heads = heads,
          .kv_heads = heads,
          .q_len = len,
          .kv_len = len,
          .head_dim = head_dim,
          .threads = threads};
}

Case With(Case c, const auto& change) {
  change(c);
  return c;
}

void AddPrefill(int threads, std::vector<Group>& groups) {
  groups.push_back({Square("short", 32, 128, 64, threads)});
  for (const bool causal : {false, true}) {
    for (const int64_t head_dim : {64, 128}) {
      for (int64_t len = 128; len <= 16384; len *= 2) {
        Case c = Square(causal ? "prefill_causal" : "prefill",
                        len <= 1024 ? 8 : 1, len, head_dim, threads);
        c.causal = causal;
        groups.push_back({c});
      }
    }
  }
  for (const int64_t head_dim : {80, 96, 100}) {
    for (const int64_t len : {777, 1000, 1537}) {
      groups.push_back({Square("odd", 8, len, head_dim, threads)});
    }
  }
  for (int64_t len = 256; len <= 8192; len *= 2) {
    const Case c = Square("over_naive", 1, len, 128, threads);
    groups.push_back({c, With(c, [](Case& naive) {
                        naive.name = "naive";
                        naive.pass = Case::Pass::kNaive;
                      })});
  }
}

// These cases have one head for all lengths, so that memory grows with one
// slope.
void AddScaling(std::vector<Group>& groups) {
  for (const int64_t head_dim : {64, 128}) {
    for (int64_t len = 1024; len <= 32768; len *= 2) {
      groups.push_back({Square("scaling", 1, len, head_dim)});
    }
  }
}

void AddMasked(std::vector<Group>& groups) {
  const Case full = Square("masked", 1, 4096, 128);
  Case causal = full;
  causal.causal = true;
  Case window = causal;
  window.window = 1024;
  groups.push_back({full, causal, window});
}

void AddSixteenBit(std::vector<Group>& groups) {
  for (const int64_t head_dim : {64, 128}) {
    const Case f32 = Square("16_bit", 1, 4096, head_dim);
    Case f16 = f32;
    f16.dtype = DataType::kF16;
    Case bf16 = f32;
    bf16.dtype = DataType::kBF16;
    groups.push_back({f32, f16, bf16});
  }
}

void AddDecode(int threads, std::vector<Group>& groups) {
  for (const int64_t heads_per_group : {1, 4}) {
    for (const DataType dtype :
         {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      groups.push_back({{.name = heads_per_group > 1 ? "decode_gqa" : "decode",
                         .dtype = dtype,
                         .q_heads = 8 * heads_per_group,
                         .kv_heads = 8,
                         .q_len = 1,
                         .kv_len = 32768,
                         .threads = threads}});
    }
  }
}

// Decoding over few and over many keys, and calls between decoding and prefill:
// speculative decoding and prefill in chunks.
void AddFewRows(int threads, std::vector<Group>& groups) {
  const auto add = [&](const char* name, DataType dtype,
                       int64_t heads_per_group, int64_t q_len, int64_t kv_len) {
    groups.push_back({{.name = name,
                       .dtype = dtype,
                       .q_heads = 2 * heads_per_group,
                       .kv_heads = 2,
                       .q_len = q_len,
                       .kv_len = kv_len,
                       .threads = threads}});
  };
  for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
    for (const int64_t heads_per_group : {1, 4, 8}) {
      for (int64_t keys = 512; keys <= 131072; keys *= 4) {
        add("decode_length", dtype, heads_per_group, 1, keys);
      }
    }
    for (const int64_t rows : {2, 4, 8, 16, 32, 64}) {
      add("few_rows", dtype, 1, rows, 8192);
    }
  }
}

// These cases have one head, so that a call is short compared with the times in
// which AMX is slow.
void AddBackward(std::vector<Group>& groups) {
  for (const bool causal : {false, true}) {
    for (const int64_t head_dim : {64, 96, 128}) {
      Case c = Square("backward", 1, 2048, head_dim);
      c.causal = causal;
      c.pass = Case::Pass::kBackward;
      groups.push_back({c});
    }
  }
}

void AddTwoThreads(std::vector<Group>& groups) {
  const auto add = [&](const Case& one) {
    Case two = one;
    two.threads = 2;
    groups.push_back({one, two});
  };
  for (const int64_t len : {1024, 4096, 16384}) {
    add(Square("two_threads", 1, len, 64));
  }
  add(Square("two_threads", 1, 4096, 128));
  add(With(Square("two_threads", 1, 4096, 128),
           [](Case& c) { c.causal = true; }));
}

// Compares what a caller can force with what attnd chooses.
void AddForced(std::vector<Group>& groups) {
  const auto block_sizes = [&](const Case& automatic) {
    Group group = {automatic};
    for (const int64_t keys : {128, 256, 512}) {
      group.push_back(With(automatic, [&](Case& c) { c.block_size = keys; }));
    }
    groups.push_back(group);
  };
  for (const int64_t head_dim : {32, 64, 128, 256}) {
    block_sizes(Square("auto", 8, 128, head_dim));
    block_sizes(Square("auto", 2, 1024, head_dim));
    block_sizes(Square("auto", 1, 4096, head_dim));
    block_sizes(With(Square("auto", 1, 4096, head_dim),
                     [](Case& c) { c.causal = true; }));
    // These cases have few rows over many keys, which are split.
    block_sizes(With(Square("auto", 8, 16384, head_dim),
                     [](Case& c) { c.q_len = 16; }));
  }
  for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
    for (const int64_t head_dim : {64, 128}) {
      const Case automatic = With(Square("auto_isa", 1, 2048, head_dim),
                                  [&](Case& c) { c.dtype = dtype; });
      Group group = {automatic};
      for (const Isa isa : SupportedIsas()) {
        if (isa == Isa::kScalar) continue;
        group.push_back(With(automatic, [&](Case& c) { c.isa = isa; }));
      }
      if (dtype == DataType::kBF16) {
        group.push_back(
            With(automatic, [](Case& c) { c.precision = Precision::kF32; }));
      }
      groups.push_back(group);
    }
  }
}

}  // namespace

std::vector<Group> CoreGroups() {
  std::vector<Group> groups;
  const bool two = AvailableThreads() >= 2;
  AddPrefill(1, groups);
  if (two) AddPrefill(2, groups);
  AddScaling(groups);
  AddMasked(groups);
  AddSixteenBit(groups);
  AddDecode(1, groups);
  if (two) AddDecode(2, groups);
  AddFewRows(1, groups);
  AddBackward(groups);
  if (two) AddTwoThreads(groups);
  AddForced(groups);
  return groups;
}

std::string NamesOf(const Group& group) {
  std::string names;
  for (const Case& c : group) {
    names += c.name + "/" + std::string(DataTypeName(c.dtype)) + "/" +
             std::to_string(c.head_dim) + "/" + std::to_string(c.q_len) + "/" +
             std::to_string(c.threads) + " ";
  }
  return names;
}

}  // namespace attnd::bench
