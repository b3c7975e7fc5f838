// Converts messages of the contract from and to the text of HTTP: parameters of
// a query, JSON and CSV. The names are those of the fields in the contract.
#ifndef ATTND_SERVER_ADMIN_MESSAGE_TEXT_H_
#define ATTND_SERVER_ADMIN_MESSAGE_TEXT_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace attnd::server {

// Sets the fields of `message` that `params` name, for example
// "num_q_heads" = "32" or "options.causal" = "CAUSAL_TOP_LEFT". A list has its
// numbers in several parameters of the same name, or separated by commas. An
// error names the field, and says which fields there are if it is unknown.
absl::Status ParseQuery(const std::multimap<std::string, std::string>& params,
                        google::protobuf::Message& message);

// Sets the fields of `message` that `json` has, in the JSON form of protobuf.
// An error names the field.
absl::Status ParseJson(absl::string_view json,
                       google::protobuf::Message& message);

// Returns `message` as one line of JSON. Numbers and lists appear even if they
// are 0 or empty. As always in the JSON form of protobuf, 64-bit integers are
// strings, so that JavaScript does not round them.
std::string ToJson(const google::protobuf::Message& message);

// Returns a line with the names of the fields of `message` and a line with
// their values, as in RFC 4180. Fields that are lists or messages are left out.
// A field that is unset, such as the answers to other goals, has no value.
std::string ToCsv(const google::protobuf::Message& message);

// Returns the value of one field as in ToCsv, without quotes. `path` names
// fields of fields with dots, as in "load.in_flight". A duration is written as
// in JSON, for example "1.5s".
absl::StatusOr<std::string> FieldText(const google::protobuf::Message& message,
                                      const std::string& path);

}  // namespace attnd::server

#endif  // ATTND_SERVER_ADMIN_MESSAGE_TEXT_H_
