// Makes the bytes of an error's details as a server sends them, and reads such
// bytes with protobuf's own code. This is separate from the tests, because
// google.rpc.ErrorInfo must not be instrumented (see cmake/attnd_target.cmake).
#ifndef ATTND_TESTS_CLIENT_ERROR_STATUS_H_
#define ATTND_TESTS_CLIENT_ERROR_STATUS_H_

#include <optional>
#include <string>

#include "absl/time/time.h"
#include "client/error_details.h"

namespace attnd::client {

// Returns a serialized google.rpc.Status with ErrorInfo of the domain "attnd".
// It has a field violation if `field` is not empty, and RetryInfo if there is a
// delay.
std::string SerializedRefusal(
    const std::string& reason, const std::string& field,
    const std::string& description,
    std::optional<absl::Duration> retry_delay = std::nullopt);

// Returns nothing if `bytes` are not a google.rpc.Status, or if some of its
// details do not parse.
std::optional<ErrorDetails> DetailsByProtobuf(const std::string& bytes);

// Returns the code and the message of a google.rpc.Status, as "3: message".
std::string StatusByProtobuf(const std::string& bytes);

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_ERROR_STATUS_H_
