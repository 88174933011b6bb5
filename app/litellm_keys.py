"""LiteLLM's keys that Manifold has no use for, section by section.

A config.yaml that has them still loads, with a warning; an unknown key does not. Source: LiteLLM
docs, "All settings", and litellm/types/router.py; read 2026-11.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TOP_LEVEL = _words("""
    agent_list assistant_settings batch_settings callback_settings cost_discount_config
    credential_list fallbacks guardrails litellm_jwtauth mcp_aliases mcp_servers mcp_tools
    pass_through_endpoints policies policy_attachments prompts search_tools skills
    vector_store_registry worker_config
""")
"""Beside `model_list`."""

MODEL_ENTRY = _words("""
    blocked created_at created_by model_id rpm tpm updated_at updated_by
""")
"""In an entry of `model_list`, beside `litellm_params`."""

DEPLOYMENT = _words("""
    adaptive_router_config adaptive_router_default_model additional_drop_params
    allow_client_keepalive_override allowed_fails allowed_fails_policy allowed_openai_params
    assistant_continue_message auto_router_config auto_router_config_path
    auto_router_default_model auto_router_embedding_model base_model budget_duration cache
    cache_control_injection_points caching complexity_router_config
    complexity_router_default_model configurable_clientside_auth_params content_policy_fallbacks
    context_window_fallbacks cooldown_time custom_prompt_dict default_api_key_rpm_limit
    default_api_key_tpm_limit disable_add_transform_inline_image_block drop_params
    ensure_alternating_roles extra_body extra_headers fallbacks final_prompt_value force_timeout
    frequency_penalty guardrails headers hf_model_name initial_prompt_value input_type itpm
    keepalive_seconds litellm_credential_name litellm_system_prompt litellm_trace_id logit_bias
    logprobs max_budget max_completion_tokens max_fallbacks max_file_size_mb
    max_parallel_requests max_tokens merge_reasoning_content_in_choices metadata mock_response
    mock_timeout mock_tool_calls n no-log num_retries order otpm parallel_tool_calls
    presence_penalty preset_cache_key prompt_id prompt_variables reasoning_effort region_name
    response_format retry_policy rpm safety_settings seed service_tier stop stream
    stream_options stream_timeout supports_system_message tag_regex tags temperature thinking
    tool_choice tools top_k top_logprobs top_p tpm use_chat_completions_api use_in_pass_through
    use_litellm_proxy user user_continue_message verbosity web_search_options
""")
"""In `litellm_params`."""

GENERAL = _words("""
    admin_only_routes alert_to_webhook_url alert_type_config alert_types alerting alerting_args
    alerting_threshold allow_client_side_credentials allow_requests_on_db_unavailable
    allow_user_auth allowed_ips allowed_routes always_include_stream_usage
    background_health_check_max_tokens background_health_checks block_robots completion_model
    control_plane_url coordination_redis custom_auth custom_auth_run_common_checks
    custom_auth_settings custom_key_generate custom_key_update custom_sso
    custom_ui_sso_sign_in_handler database_connection_pool_limit database_connection_timeout
    database_extra_connection_params database_type db_model default_team_disabled
    disable_adding_master_key_hash_to_db disable_batch_input_file_usage_tracking
    disable_budget_reservation disable_end_user_cost_tracking disable_error_logs
    disable_master_key_return disable_prisma_schema_update disable_reset_budget
    disable_responses_id_security disable_retry_on_max_parallel_request_limit_error
    disable_spend_logs disable_spend_updates dynamo_db_args dynamodb_args embedding_model
    enable_health_check_routing enable_jwt_auth enable_oauth2_auth enable_oauth2_proxy_auth
    enable_public_model_hub enforce_rbac enforce_user_param enforced_batch_output_expires_after
    enforced_file_expires_after enforced_params forward_client_headers_to_llm_api
    forward_llm_provider_auth_headers forward_openai_org_id global_max_parallel_requests
    health_check_concurrency health_check_details health_check_ignore_transient_errors
    health_check_interval health_check_staleness_threshold image_generation_model
    infer_model_from_keys key_management_settings key_management_system litellm_jwtauth
    litellm_key_header_name litellm_license max_parallel_requests max_response_size_mb
    maximum_spend_logs_cleanup_batch_size maximum_spend_logs_cleanup_cron
    maximum_spend_logs_retention_interval maximum_spend_logs_retention_period
    mcp_client_side_auth_header_name mcp_internal_ip_ranges mcp_required_fields
    mcp_trusted_proxy_ranges moderation_model oauth2_config_mappings otel pass_through_endpoints
    pass_through_request_timeout password_policy proxy_batch_polling_interval
    proxy_batch_write_at proxy_budget_rescheduler_max_time proxy_budget_rescheduler_min_time
    public_routes reject_clientside_metadata_tags role_mappings role_permissions search_tools
    service_account_settings spend_report_frequency store_model_in_db
    store_prompts_in_spend_logs supported_db_objects token_rate_limit_type ui_access_mode
    ui_logo_path ui_password ui_username upperbound_key_generate_params use_azure_key_vault
    use_client_credentials_pass_through_routes use_google_kms use_redis_transaction_buffer
    use_shared_health_check use_x_forwarded_for user_api_key_cache_ttl user_header_mappings
    user_header_name user_mcp_management_mode vector_store_registry
""")
"""In `general_settings`."""

ROUTER = _words("""
    alerting_config allowed_fails allowed_fails_policy assistants_config cache_kwargs
    cache_responses caching_groups client_ttl content_policy_fallbacks context_window_fallbacks
    debug_level default_fallbacks default_litellm_params default_max_parallel_requests
    default_priority deployment_affinity_ttl_seconds disable_cooldowns
    enable_health_check_routing enable_pre_call_check enable_pre_call_checks
    enable_tag_filtering enable_weighted_failover fallbacks guardrail_list
    health_check_ignore_transient_errors health_check_staleness_threshold
    ignore_invalid_deployments max_fallbacks max_retries model_group_affinity_config
    model_group_alias model_group_retry_policy num_retries optional_pre_call_checks
    polling_interval provider_budget_config redis_db redis_host redis_password redis_port
    redis_ssl redis_url redis_username retry_after retry_policy router_general_settings
    routing_groups routing_strategy_args search_tools set_verbose stream_timeout
    tag_filtering_match_any tag_routing_prefix timeout weights
""")
"""In `router_settings`."""

LITELLM = _words("""
    add_function_to_prompt add_user_information_to_llm_headers aim_api_key aiohttp_trust_env
    allowed_fails anthropic_key api_base api_key api_version argilla_batch_size
    argilla_transformation_object audit_log_callbacks auth_strategy azure_key
    banned_keywords_list blocked_user_list budget_duration budget_manager cache cache_params
    callbacks cloudzero_settings common_cloud_provider_auth_params compression_settings
    content_policy_fallbacks context_window_fallbacks cooldown_time cost_discount_config
    cost_margin_config custom_prometheus_metadata_labels custom_prometheus_tags
    custom_provider_map datadog_llm_observability_params datadog_params default_end_user_params
    default_fallbacks default_in_memory_ttl default_internal_user_params
    default_key_generate_params default_max_internal_user_budget
    default_redis_batch_cache_expiry default_redis_ttl DEFAULT_REPLICATE_POLLING_DELAY_SECONDS
    default_team_params default_team_settings disable_add_prefix_to_prompt
    disable_add_transform_inline_image_block disable_aiohttp_transport disable_aiohttp_trust_env
    disable_anthropic_gemini_context_caching_transform disable_copilot_system_to_assistant
    disable_default_user_agent disable_end_user_cost_tracking
    disable_end_user_cost_tracking_prometheus_only disable_hf_tokenizer_download
    disable_model_cost_map_fetch disable_no_log_param disable_streaming_logging
    disable_token_counter disable_vertex_batch_output_transformation drop_params
    dynamic_rate_limiting enable_azure_ad_token_refresh
    enable_caching_on_provider_specific_optional_params
    enable_end_user_cost_tracking_prometheus_only enable_gemini_context_caching
    enable_json_schema_validation enable_key_alias_format_validation
    enable_loadbalancing_on_batch_endpoints enable_preview_features enable_redis_auth_cache
    enforced_params expose_cost_in_headers extra_spend_tag_headers failure_callback fallbacks
    filter_invalid_headers force_ipv4 forward_traceparent_to_llm_provider gcs_pub_sub_use_v1
    generic_api_use_v1 generic_logger_headers global_disable_no_log_param
    google_moderation_confidence_threshold guardrails in_memory_llm_clients_cache
    include_cost_in_streaming_usage input_callback internal_user_budget_duration
    json_indented_logs json_logs key_alias key_generation_settings langfuse_default_tags
    langsmith_batch_size LITELLM_DISABLE_STOP_SEQUENCE_LIMIT litellm_key_header_name
    llamaguard_model_name llamaguard_unsafe_content_categories llm_guard_mode
    log_raw_request_response logging max_budget max_end_user_budget max_end_user_budget_id
    max_fallbacks max_internal_user_budget max_parallel_requests max_tokens
    max_ui_session_budget max_user_budget mcp_aliases mcp_semantic_tool_filter
    merge_reasoning_content_in_choices model_alias_map model_cost_map_url model_group_alias
    model_group_settings modify_params network_mock num_retries num_retries_per_request
    openai_key openai_moderations_model_name opik_params organization otel post_call_rules
    pre_call_rules presidio_ad_hoc_recognizers priority_reservation
    priority_reservation_settings project prometheus_emit_stream_label prometheus_exclude_labels
    prometheus_exclude_metrics prometheus_initialize_budget_metrics prometheus_latency_buckets
    prometheus_metrics_config prompt_name_config provider_url_destination_allowed_hosts
    public_agent_groups public_mcp_servers public_model_groups public_model_groups_links
    reasoning_auto_summary redact_messages_in_exceptions redact_user_api_key_info
    request_timeout require_auth_for_metrics_endpoint responses_api_use_v1 retry
    return_response_headers rpm_limit s3_callback_params safe_memory_mode secret_manager_client
    service_callback service_callbacks set_verbose snowflake_key ssl_certificate ssl_ecdh_curve
    ssl_security_level ssl_verify standard_logging_payload_excluded_fields store_audit_logs
    store_prompts_in_cold_storage stream_chunk_timeout streaming_tool_call_timeout
    success_callback suppress_debug_info tag_budget_config telemetry token tpm_limit
    turn_off_message_logging upperbound_key_generate_params use_aiohttp_transport
    use_chat_completions_url_for_anthropic_messages use_client use_litellm_proxy
    user_header_name user_url_allowed_hosts user_url_validation vector_store_registry
    vertex_ai_safety_settings vertex_location vertex_project
""")
"""In `litellm_settings`: what LiteLLM sets on its own library."""

STRATEGIES = (
    "cost-based-routing",
    "latency-based-routing",
    "provider-budget-routing",
    "usage-based-routing",
    "usage-based-routing-v2",
)
"""Values of `routing_strategy` that LiteLLM knows and Manifold does not."""
