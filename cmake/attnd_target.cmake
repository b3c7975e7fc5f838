# attnd_target(NAME): the warnings and sanitizers that every target of ours is
# built with. Third-party and generated headers are SYSTEM and stay silent.
#
# attnd_thin_grpc(NAME FILE...): marks files that include grpcpp. Debian's gRPC
# is not instrumented, so thread sanitizer cannot see its locks and would report
# falsely; these files are kept thin and are left out of its instrumentation.
# Files that touch a message with a map (google.rpc.ErrorInfo) need the same:
# protobuf's map_field.h lays such a message out differently when instrumented
# than Debian's libprotobuf was built with, which crashes.

function(attnd_target name)
  target_include_directories(${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  target_compile_options(${name} PRIVATE
    -Wall -Wextra -Wconversion -Wsign-conversion -Wshadow -Wvla
    $<$<BOOL:${ATTND_WERROR}>:-Werror>)
  attnd_sanitize(${name})
endfunction()

function(attnd_sanitize name)
  if(ATTND_SANITIZE)
    target_compile_options(${name} PRIVATE
      -fsanitize=${ATTND_SANITIZE} -fno-omit-frame-pointer)
    if(NOT ATTND_SANITIZE STREQUAL "thread")
      target_compile_options(${name} PRIVATE -fno-sanitize-recover=all)
    endif()
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # GCC's manual says that this warning is often false with a sanitizer on.
      # Builds without a sanitizer keep it.
      target_compile_options(${name} PRIVATE -Wno-maybe-uninitialized)
    endif()
    target_link_options(${name} PUBLIC -fsanitize=${ATTND_SANITIZE})
  endif()
endfunction()

function(attnd_thin_grpc name)
  if(ATTND_SANITIZE STREQUAL "thread")
    set_source_files_properties(${ARGN} TARGET_DIRECTORY ${name} PROPERTIES
      COMPILE_OPTIONS "-fno-sanitize=thread")
  endif()
endfunction()
