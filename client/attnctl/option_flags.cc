#include "client/attnctl/option_flags.h"

#include <charconv>
#include <cmath>
#include <map>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace attnd::attnctl {
namespace {

// A flag that takes one of the names of `values`. The map must stay.
template <typename Value, typename Target>
CLI::Option* AddNamedFlag(CLI::App& command, const std::string& flag,
                          const std::map<std::string, Value>& values,
                          Target& target, const std::string& help,
                          const char* type_name) {
  return command
      .add_option_function<std::string>(
          flag,
          [&values, &target](const std::string& name) {
            target = values.at(name);
          },
          help)
      ->check(CLI::IsMember(&values))
      ->type_name(type_name);
}

const auto& Types() {
  static const std::map<std::string, client::DataType> kTypes = {
      {"f32", client::DataType::kF32},
      {"f16", client::DataType::kF16},
      {"bf16", client::DataType::kBF16}};
  return kTypes;
}

const auto& CausalRules() {
  static const std::map<std::string, client::Causal> kRules = {
      {"none", client::Causal::kNone},
      {"top-left", client::Causal::kTopLeft},
      {"bottom-right", client::Causal::kBottomRight}};
  return kRules;
}

const auto& Layouts() {
  static const std::map<std::string, client::Layout> kLayouts = {
      {"bhsd", client::Layout::kBhsd}, {"bshd", client::Layout::kBshd}};
  return kLayouts;
}

const auto& Precisions() {
  static const std::map<std::string, client::Precision> kPrecisions = {
      {"auto", client::Precision::kAuto},
      {"f32", client::Precision::kF32},
      {"bf16", client::Precision::kBF16}};
  return kPrecisions;
}

const auto& Transports() {
  static const std::map<std::string, client::Transport> kTransports = {
      {"inline", client::Transport::kInline},
      {"stream", client::Transport::kStream},
      {"shared-memory", client::Transport::kSharedMemory}};
  return kTransports;
}

// std::from_chars reads decimal numbers and reports those that do not fit the
// type. CLI11 by itself would clamp them, and would read 010 as eight.
template <typename Number>
Number ParseNumber(const std::string& flag, absl::string_view text) {
  constexpr bool kWhole = std::is_integral_v<Number>;
  Number number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error == std::errc::result_out_of_range && stop == end) {
    throw CLI::ValidationError(
        flag,
        absl::StrCat("expected a number that ", kWhole ? "an int" : "a float",
                     8 * sizeof(Number), " can hold, got ", text));
  }
  if (error != std::errc() || stop != end ||
      std::isnan(static_cast<double>(number))) {
    throw CLI::ValidationError(
        flag, absl::StrCat("expected a ", kWhole ? "whole number" : "number",
                           ", got '", text, "'"));
  }
  return number;
}

template <typename Number>
void Parse(const std::string& flag, const std::string& text, Number& target) {
  target = ParseNumber<Number>(flag, text);
}

template <typename Number>
void Parse(const std::string& flag, const std::string& text,
           std::optional<Number>& target) {
  target = ParseNumber<Number>(flag, text);
}

template <typename Number>
void Parse(const std::string& flag, const std::string& text,
           std::vector<Number>& target) {
  target.clear();
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    if (item.empty()) {
      throw CLI::ValidationError(
          flag, absl::StrCat("expected a number on each side of each comma, "
                             "got '",
                             text, "'"));
    }
    target.push_back(ParseNumber<Number>(flag, item));
  }
}

template <typename Number>
constexpr const char* kTypeName = std::is_integral_v<Number> ? "N" : "X";
template <typename Number>
constexpr const char* kTypeName<std::optional<Number>> = kTypeName<Number>;
template <typename Number>
constexpr const char* kTypeName<std::vector<Number>> =
    std::is_integral_v<Number> ? "N,..." : "X,...";

}  // namespace

template <typename Number>
CLI::Option* AddNumberFlag(CLI::App& command, const std::string& name,
                           Number& target, const std::string& help) {
  // The name in errors is the long one, which is the last.
  const std::string flag = name.substr(name.find("--"));
  return command
      .add_option_function<std::string>(
          name,
          [flag, &target](const std::string& text) {
            Parse(flag, text, target);
          },
          help)
      ->type_name(kTypeName<Number>);
}

template CLI::Option* AddNumberFlag(CLI::App&, const std::string&, int64_t&,
                                    const std::string&);
template CLI::Option* AddNumberFlag(CLI::App&, const std::string&,
                                    std::vector<int64_t>&, const std::string&);
template CLI::Option* AddNumberFlag(CLI::App&, const std::string&, double&,
                                    const std::string&);
template CLI::Option* AddNumberFlag(CLI::App&, const std::string&,
                                    std::optional<double>&, const std::string&);

CLI::Option* FileFlag::Add(CLI::App& command, const std::string& names,
                           const std::string& help) {
  name = names.substr(names.find("--"));
  return command.add_option(names, path, help)->type_name("FILE.npy");
}

absl::Status FileFlag::Error(const absl::Status& status) const {
  return {status.code(), absl::StrCat(name, "=", status.message())};
}

void AddOptionFlags(CLI::App& command, client::AttentionOptions& options) {
  AddNumberFlag(command, "--scale", options.scale,
                "factor of the scores; default 1 / sqrt(head_dim)");
  AddNumberFlag(command, "--temperature", options.temperature,
                "divides the scores; default 1");
  AddNumberFlag(command, "--block-size", options.block_size,
                "keys in a tile; default automatic");
  AddNamedFlag(command, "--layout", Layouts(), options.layout,
               "order of axes: bhsd ([batch, heads, seq, dim], the default) or "
               "bshd ([batch, seq, heads, dim])",
               "ORDER");
  AddNamedFlag(command, "--causal", CausalRules(), options.causal,
               "which keys a query row sees by position: none, top-left (row 0 "
               "sees key 0) or bottom-right (the last row sees the last key)",
               "RULE");
  AddNumberFlag(
      command, "--query-offsets", options.query_offsets,
      "row i is at position i + offset; one for all, or one per batch entry");
  AddNumberFlag(
      command, "--window-left", options.window_left,
      "how far before its position a row sees keys; default no bound");
  AddNumberFlag(command, "--window-right", options.window_right,
                "how far after its position a row sees keys; default no bound");
  AddNumberFlag(command, "--logits-soft-cap", options.logits_soft_cap,
                "turns a score s into cap * tanh(s / cap); default none");
  AddNumberFlag(command, "--alibi-slopes", options.alibi_slopes,
                "one per query head: lowers scores by slope * distance");
  AddNumberFlag(
      command, "--sink-logits", options.sink_logits,
      "one per query head: the score of a further key whose value is 0");
  AddNumberFlag(command, "--query-lengths", options.query_lengths,
                "one per batch entry: rows beyond it see no key");
  AddNumberFlag(command, "--key-lengths", options.key_lengths,
                "one per batch entry: keys beyond it are hidden");
  AddNumberFlag(command, "--cu-seqlens-q", options.cu_seqlens_q,
                "where the entries of a ragged batch begin along seq, and its "
                "end; with --cu-seqlens-k");
  AddNumberFlag(command, "--cu-seqlens-k", options.cu_seqlens_k,
                "the same for keys and values");
  AddNamedFlag(command, "--precision", Precisions(), options.precision,
               "of the products: auto (default), f32 or bf16", "KIND");
}

void AddTransportFlag(CLI::App& command, client::Transport& transport) {
  AddNamedFlag(command, "--transport", Transports(), transport,
               "how tensors travel: inline (default), stream or shared-memory",
               "WAY");
}

CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         client::DataType& type, const std::string& help) {
  return AddNamedFlag(command, name, Types(), type, help, "TYPE");
}

CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         std::optional<client::DataType>& type,
                         const std::string& help) {
  return AddNamedFlag(command, name, Types(), type, help, "TYPE");
}

void TensorFlags::Add(CLI::App& command) {
  bias_file_.Add(
      command, "--bias",
      "added to the scores; float32, float16 or bfloat16, or float64 "
      "with --dtype; broadcast to [batch, q_heads, q_len, kv_len]");
  mask_file_.Add(command, "--mask",
                 "bool, true = visible; broadcast as --bias is");
}

absl::Status TensorFlags::Load(std::optional<client::DataType> dtype,
                               client::AttentionOptions& options) {
  const auto load = [dtype](const FileFlag& file, NpyTensor& array,
                            std::optional<client::ConstTensor>& tensor) {
    if (file.path.empty()) return absl::OkStatus();
    auto read = ReadNpy(file.path, {.to = dtype, .only_float64 = true});
    if (!read.ok()) return file.Error(read.status());
    array = *std::move(read);
    tensor = {{array.dtype, array.bytes}, array.shape};
    return absl::OkStatus();
  };
  absl::Status status = load(bias_file_, bias_, options.bias);
  status.Update(load(mask_file_, mask_, options.mask));
  return status;
}

}  // namespace attnd::attnctl
