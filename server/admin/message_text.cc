#include "server/admin/message_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "server/status/status_convert.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Struct;
using google::protobuf::Value;

// The names that a client sends end up in error messages.
std::string Quoted(absl::string_view text) {
  constexpr size_t kMaxBytes = 100;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxBytes)),
                      text.size() > kMaxBytes ? "..." : "", "\"");
}

std::string Joined(absl::string_view parent, absl::string_view name) {
  return absl::StrCat(parent, parent.empty() ? "" : ".", name);
}

std::string NamesOf(const Descriptor& type) {
  std::vector<std::string> names;
  names.reserve(static_cast<size_t>(type.field_count()));
  for (int i = 0; i < type.field_count(); ++i) {
    names.push_back(type.field(i)->name());
  }
  return absl::StrJoin(names, ", ");
}

absl::Status UnknownField(const Descriptor& type, absl::string_view parent,
                          absl::string_view name) {
  const std::string known = NamesOf(type);
  const std::string path =
      Joined(parent, absl::CHexEscape(name.substr(0, 100)));
  const std::string expected =
      known.empty()
          ? absl::StrCat("no fields, because ", type.name(), " has none")
          : absl::StrCat("a field of ", type.name(), " (", known, ")");
  const std::string got = Quoted(name);
  if (path.empty()) {
    return absl::InvalidArgumentError(ExpectedGot(expected, got));
  }
  return FieldError(path, expected, got);
}

// Returns whether the JSON form of `type` is a text such as "1.5s".
bool IsTextInJson(const Descriptor& type) {
  return type.well_known_type() == Descriptor::WELLKNOWNTYPE_DURATION;
}

// A field, and the path to it.
struct Found {
  const FieldDescriptor* field = nullptr;
  std::vector<const FieldDescriptor*> parents;
};

// Finds the field of `type` that `path` names, whose value is one text or a
// list.
absl::StatusOr<Found> Find(const Descriptor& type, const std::string& path) {
  const Descriptor* here = &type;
  Found found;
  std::string parent;
  for (const absl::string_view name : absl::StrSplit(path, '.')) {
    if (found.field != nullptr) {
      parent = Joined(parent, found.field->name());
      if (found.field->is_repeated() ||
          found.field->message_type() == nullptr) {
        return FieldError(parent, "no field below it", Quoted(path));
      }
      found.parents.push_back(found.field);
      here = found.field->message_type();
    }
    found.field = here->FindFieldByName(std::string(name));
    if (found.field == nullptr) return UnknownField(*here, parent, name);
  }
  if (!found.field->is_repeated() && found.field->message_type() != nullptr &&
      !IsTextInJson(*found.field->message_type())) {
    const Descriptor& inner = *found.field->message_type();
    return FieldError(
        path,
        inner.field_count() == 0
            ? "no value, because it is the default"
            : absl::StrCat("a field below it, as in ", path, ".",
                           inner.field(0)->name(), " (", NamesOf(inner), ")"),
        "the whole message");
  }
  return found;
}

bool IsPlain(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isprint(static_cast<unsigned char>(c));
  });
}

// Adds one parameter to `json`, which has the form of the message.
absl::Status AddParam(const std::string& path, const std::string& value,
                      const Descriptor& type, Struct& json) {
  ATTND_ASSIGN_OR_RETURN(const Found found, Find(type, path));
  if (!IsPlain(value)) {
    return FieldError(path, "printable ASCII characters", Quoted(value));
  }
  Struct* here = &json;
  for (const FieldDescriptor* parent : found.parents) {
    here = (*here->mutable_fields())[parent->name()].mutable_struct_value();
  }
  Value& slot = (*here->mutable_fields())[found.field->name()];
  if (found.field->is_repeated()) {
    for (const absl::string_view each : absl::StrSplit(value, ',')) {
      slot.mutable_list_value()->add_values()->set_string_value(
          std::string(each));
    }
    return absl::OkStatus();
  }
  if (slot.kind_case() != Value::KIND_NOT_SET) {
    return FieldError(path, "one value", "several");
  }
  slot.set_string_value(value);
  return absl::OkStatus();
}

std::string ValuesOf(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_ENUM: {
      const google::protobuf::EnumDescriptor& type = *field.enum_type();
      std::vector<std::string> names;
      names.reserve(static_cast<size_t>(type.value_count()));
      for (int i = 0; i < type.value_count(); ++i) {
        names.push_back(type.value(i)->name());
      }
      return absl::StrCat("one of ", absl::StrJoin(names, ", "));
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a number";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return absl::StrCat("an object with fields of ",
                          field.message_type()->name());
    case FieldDescriptor::CPPTYPE_STRING:
      return "text, or base64 if it has bytes";
    default:
      return "a whole number of 64 bits";
  }
}

// Returns the message that has the field `path`, and the field or null. `path`
// may have indices, as in "options.key_lengths[1]".
std::pair<const Descriptor*, const FieldDescriptor*> FollowJsonPath(
    const Descriptor& type, absl::string_view path) {
  const Descriptor* here = &type;
  const FieldDescriptor* field = nullptr;
  for (const absl::string_view part :
       absl::StrSplit(path, '.', absl::SkipEmpty())) {
    if (field != nullptr) here = field->message_type();
    if (here == nullptr) return {&type, nullptr};
    const std::string name(part.substr(0, part.find('[')));
    field = here->FindFieldByName(name);
    if (field == nullptr) field = here->FindFieldByCamelcaseName(name);
    if (field == nullptr) return {&type, nullptr};
  }
  return {here, field};
}

// Returns the error for JSON about which protobuf says `text`. The path of the
// field is at the front of some texts, as in
//   (options.causal): invalid value "x" for type type.googleapis.com/...
//   (options) causl: Cannot find field.
absl::Status JsonError(absl::string_view text, const Descriptor& type) {
  constexpr size_t kMaxBytes = 500;
  std::string plain(text.substr(0, kMaxBytes));
  for (char& c : plain) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) {
      c = absl::ascii_isspace(static_cast<unsigned char>(c)) ? ' ' : '?';
    }
  }
  absl::string_view rest = plain;
  absl::string_view path;
  if (absl::ConsumePrefix(&rest, "(")) {
    path = rest.substr(0, rest.find(')'));
    rest.remove_prefix(std::min(rest.size(), path.size() + 1));
  }
  const auto [message, field] = FollowJsonPath(type, path);
  absl::string_view name = absl::StripLeadingAsciiWhitespace(rest);
  if (absl::ConsumeSuffix(&name, ": Cannot find field.")) {
    const Descriptor* const below =
        field != nullptr ? field->message_type() : message;
    return UnknownField(below != nullptr ? *below : type, path, name);
  }
  if (path.empty()) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat(
            "the JSON is wrong: ", absl::StripPrefix(plain, ": "))),
        kMalformedMessage);
  }
  absl::string_view got = rest;
  const size_t type_at = got.rfind(" for type ");
  if (field != nullptr && type_at != absl::string_view::npos &&
      absl::ConsumePrefix(&got, ": invalid value ")) {
    got.remove_suffix(rest.size() - type_at);
    return FieldError(std::string(path), ValuesOf(*field), std::string(got));
  }
  return RefuseField(absl::StatusCode::kInvalidArgument, path,
                     absl::StripPrefix(rest, ": "), kMalformedMessage);
}

// Returns the value of a field that Find has found and that is no list.
std::string ScalarText(const Message& message, const FieldDescriptor& field) {
  const google::protobuf::Reflection& of = *message.GetReflection();
  if (field.has_presence() && !of.HasField(message, &field)) return "";
  const auto floating = [](auto number) {
    std::array<char, 32> text{};
    return std::string(
        text.data(),
        std::to_chars(text.data(), text.data() + text.size(), number).ptr);
  };
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(of.GetInt32(message, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(of.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(of.GetUInt32(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(of.GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return of.GetBool(message, &field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return floating(of.GetDouble(message, &field));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return floating(of.GetFloat(message, &field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return of.GetEnum(message, &field)->name();
    case FieldDescriptor::CPPTYPE_STRING:
      return of.GetString(message, &field);
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      const std::string json = ToJson(of.GetMessage(message, &field));
      return json.substr(1, json.size() - 2);  // without the quotes
    }
  }
  return "";
}

std::string CsvCell(std::string text) {
  if (text.find_first_of("\",\r\n") == std::string::npos) return text;
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\"", "\"\""}}), "\"");
}

}  // namespace

absl::Status ParseQuery(const std::multimap<std::string, std::string>& params,
                        Message& message) {
  Struct json;
  for (const auto& [path, value] : params) {
    ATTND_RETURN_IF_ERROR(
        AddParam(path, value, *message.GetDescriptor(), json));
  }
  return ParseJson(ToJson(json), message);
}

absl::Status ParseJson(absl::string_view json, Message& message) {
  const auto status = google::protobuf::util::JsonStringToMessage(
      {json.data(), json.size()}, &message);
  if (status.ok()) return absl::OkStatus();
  const auto text = status.message();
  return JsonError({text.data(), text.size()}, *message.GetDescriptor());
}

std::string ToJson(const Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // This fails only for messages of the type Any.
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);
  return json;
}

std::string ToCsv(const Message& message) {
  std::vector<std::string> names;
  std::vector<std::string> values;
  const Descriptor& type = *message.GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.is_repeated() || field.message_type() != nullptr) continue;
    names.push_back(field.name());
    values.push_back(CsvCell(ScalarText(message, field)));
  }
  return absl::StrCat(absl::StrJoin(names, ","), "\r\n",
                      absl::StrJoin(values, ","), "\r\n");
}

absl::StatusOr<std::string> FieldText(const Message& message,
                                      const std::string& path) {
  ATTND_ASSIGN_OR_RETURN(const Found found,
                         Find(*message.GetDescriptor(), path));
  if (found.field->is_repeated()) {
    return FieldError(path,
                      "a field that is not a list, because only JSON has lists",
                      "a list");
  }
  const Message* here = &message;
  for (const FieldDescriptor* parent : found.parents) {
    here = &here->GetReflection()->GetMessage(*here, parent);
  }
  return ScalarText(*here, *found.field);
}

}  // namespace attnd::server
