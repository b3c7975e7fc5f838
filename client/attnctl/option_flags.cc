#include "client/attnctl/option_flags.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <map>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/attention_options.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "base/types.h"

namespace attnd::attnctl {
namespace {

std::string FlagText(absl::string_view name) {
  return absl::StrReplaceAll(absl::AsciiStrToLower(name), {{"_", "-"}});
}

// Returns the values that a flag of this type takes, by name. They do not
// include BOOL, because no flag takes it.
template <typename Enum>
const std::map<std::string, Enum>& FlagValues() {
  static const auto* const kValues = [] {
    auto* values = new std::map<std::string, Enum>;
    for (const auto& [value, name] : kNamedValues<Enum>) {
      values->emplace(FlagText(name), value);
    }
    if constexpr (std::is_same_v<Enum, DataType>) values->erase("bool");
    return values;
  }();
  return *kValues;
}

// Adds a flag that takes a name. `Target` is an enum or an optional of one.
template <typename Enum, typename Target>
CLI::Option* AddNamedFlag(CLI::App& command, const std::string& flag,
                          Target& target, const std::string& help) {
  const std::map<std::string, Enum>& values = FlagValues<Enum>();
  return command
      .add_option_function<std::string>(
          flag,
          [&values, &target](const std::string& name) {
            target = values.at(name);
          },
          help)
      ->check(CLI::IsMember(&values))
      ->type_name("NAME");
}

// Reads a decimal number, and reports one that does not fit the type. CLI11
// itself would change such a number to the nearest that fits, and would read
// 010 as eight.
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
  // Errors have the long name, which is the last one.
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

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  static constexpr std::pair<const char*, int64_t> kUnits[] = {
      {"", 1},
      {"b", 1},
      {"ki", int64_t{1} << 10},
      {"mi", int64_t{1} << 20},
      {"gi", int64_t{1} << 30},
      {"ti", int64_t{1} << 40},
      {"kib", int64_t{1} << 10},
      {"mib", int64_t{1} << 20},
      {"gib", int64_t{1} << 30},
      {"tib", int64_t{1} << 40},
      {"kb", 1000},
      {"mb", 1000 * 1000},
      {"gb", 1000 * 1000 * 1000},
      {"tb", int64_t{1000} * 1000 * 1000 * 1000}};
  const size_t digits =
      std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string unit =
      absl::AsciiStrToLower(absl::StripAsciiWhitespace(text.substr(digits)));
  const auto* const found =
      std::find_if(std::begin(kUnits), std::end(kUnits),
                   [&unit](const auto& known) { return known.first == unit; });
  const absl::string_view number = text.substr(0, digits);
  const char* const end = number.data() + number.size();
  const auto out_of_range = [&text] {
    return absl::OutOfRangeError(
        absl::StrCat("expected at most ", std::numeric_limits<int64_t>::max(),
                     " bytes, got ", text));
  };
  if (found != std::end(kUnits)) {
    // Whole numbers are exact, although a double cannot hold all of them.
    int64_t whole = 0;
    auto [stop, error] = std::from_chars(number.data(), end, whole);
    if (error == std::errc::result_out_of_range && stop == end) {
      return out_of_range();
    }
    if (error == std::errc() && stop == end) {
      const std::optional<int64_t> bytes =
          CheckedProduct({whole, found->second});
      return bytes ? absl::StatusOr<int64_t>(*bytes) : out_of_range();
    }
    double fraction = 0;
    const auto real =
        std::from_chars(number.data(), end, fraction, std::chars_format::fixed);
    if (real.ec == std::errc() && real.ptr == end) {
      const double bytes = fraction * static_cast<double>(found->second);
      if (bytes >= 0x1p63) return out_of_range();
      return static_cast<int64_t>(bytes);
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "expected a number of bytes such as 8GiB, 1.5GB or 1048576, got '", text,
      "'"));
}

CLI::Option* AddBytesFlag(CLI::App& command, const std::string& name,
                          int64_t& target, const std::string& help,
                          int64_t max) {
  return command
      .add_option_function<std::string>(
          name,
          [name, &target, max](const std::string& text) {
            const absl::StatusOr<int64_t> bytes = ParseBytes(text);
            if (!bytes.ok()) {
              throw CLI::ValidationError(name,
                                         std::string(bytes.status().message()));
            }
            if (*bytes < 1 || *bytes > max) {
              throw CLI::ValidationError(
                  name,
                  absl::StrCat("expected 1 to ", max, " bytes, got ", text));
            }
            target = *bytes;
          },
          help)
      ->type_name("BYTES");
}

CLI::Option* FileFlag::Add(CLI::App& command, const std::string& names,
                           const std::string& help) {
  name = names.substr(names.find("--"));
  return command.add_option(names, path, help)->type_name("FILE.npy");
}

absl::Status FileFlag::Error(const absl::Status& status) const {
  return {status.code(), absl::StrCat(name, "=", status.message())};
}

void AddOptionFlags(CLI::App& command, client::AttentionOptions& options) {
  ForEachOption([&](const char* name, auto member, const char* help,
                    const auto&...) {
    auto& option = member(options);
    using Option = std::remove_reference_t<decltype(option)>;
    const std::string flag = absl::StrCat("--", FlagText(name));
    if constexpr (std::is_enum_v<Option>) {
      AddNamedFlag<Option>(command, flag, option, help);
    } else if constexpr (!std::is_same_v<Option,
                                         std::optional<client::ConstTensor>>) {
      AddNumberFlag(command, flag, option, help);
    }
  });
}

void AddTransportFlag(CLI::App& command, client::Transport& transport) {
  AddNamedFlag<Transport>(
      command, "--transport", transport,
      "how tensors travel: inline (default), stream or shared-memory");
}

CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         client::DataType& type, const std::string& help) {
  return AddNamedFlag<DataType>(command, name, type, help);
}

CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         std::optional<client::DataType>& type,
                         const std::string& help) {
  return AddNamedFlag<DataType>(command, name, type, help);
}

std::string TypeName(client::DataType type) { return FlagText(NameOf(type)); }

void TensorFlags::Add(CLI::App& command) {
  ForEachOption([&](absl::string_view name, auto, const std::string& help,
                    const auto&...) {
    if (name == "bias") {
      bias_file_.Add(command, "--bias",
                     absl::StrCat(help,
                                  ". Takes float32, float16 or bfloat16, "
                                  "and float64 with --dtype"));
    } else if (name == "mask") {
      mask_file_.Add(command, "--mask", help);
    }
  });
}

absl::Status TensorFlags::Load(std::optional<client::DataType> dtype,
                               client::AttentionOptions& options) const {
  const auto load = [dtype](const FileFlag& file,
                            std::optional<client::ConstTensor>& tensor) {
    if (file.path.empty()) return absl::OkStatus();
    auto read = ReadNpy(file.path, {.to = dtype, .only_float64 = true});
    if (!read.ok()) return file.Error(read.status());
    tensor = *std::move(read);
    return absl::OkStatus();
  };
  ATTND_RETURN_IF_ERROR(load(bias_file_, options.bias));
  return load(mask_file_, options.mask);
}

}  // namespace attnd::attnctl
