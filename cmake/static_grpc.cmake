# Makes the targets of gRPC, protobuf, Abseil and RE2 link their archives instead of
# their shared libraries. Debian's packages contain both. Include it after find_package.
#
# Most of the time of a small call is spent in gRPC, where each call of a function in
# another shared library takes a jump through a table, and each use of a thread-local
# variable calls __tls_get_addr. All four must be linked in the same way, because a
# program with two copies of protobuf or Abseil can crash.

get_property(attnd_imported DIRECTORY PROPERTY IMPORTED_TARGETS)
foreach(library IN LISTS attnd_imported)
  if(NOT library MATCHES "^(absl|gRPC|protobuf|re2)::")
    continue()
  endif()
  get_target_property(configurations ${library} IMPORTED_CONFIGURATIONS)
  set(properties IMPORTED_LOCATION)
  foreach(configuration IN LISTS configurations)
    list(APPEND properties IMPORTED_LOCATION_${configuration})
  endforeach()
  foreach(property IN LISTS properties)
    get_target_property(location ${library} ${property})
    if(NOT location MATCHES "\\.so[.0-9]*$")
      continue()
    endif()
    string(REGEX REPLACE "\\.so[.0-9]*$" ".a" archive "${location}")
    if(NOT EXISTS ${archive})
      message(FATAL_ERROR
        "ATTND_STATIC_GRPC: ${library} has no archive ${archive}: install it, or "
        "configure with -DATTND_STATIC_GRPC=OFF")
    endif()
    set_target_properties(${library} PROPERTIES ${property} ${archive})
  endforeach()
endforeach()

# gRPC's CMake files find RE2 with pkg-config, as flags such as -lre2 -labsl_strings.
get_target_property(re2_type re2::re2 TYPE)
if(re2_type STREQUAL "INTERFACE_LIBRARY")
  get_target_property(re2_flags re2::re2 INTERFACE_LINK_LIBRARIES)
  string(REGEX REPLACE "-l(re2|absl_[a-z0-9_]+)" "-l:lib\\1.a" re2_flags
         "${re2_flags}")
  set_target_properties(re2::re2 PROPERTIES
    INTERFACE_LINK_LIBRARIES "${re2_flags}")
endif()
